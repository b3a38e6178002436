/** Seeded random numbers (mulberry32), so that a world can be drawn again exactly. */

export class Random {
  constructor(seed) {
    this.state = seed | 0;
  }

  /** A number in [0, 1). */
  next() {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  }

  chance(probability) {
    return this.next() < probability;
  }

  pick(values) {
    return values[Math.floor(this.next() * values.length)];
  }

  /** The color moved a little in each channel, so that a model learns the word and not one exact value. */
  shade(color, amount = 8) {
    const channels = [0, 2, 4].map((start) => parseInt(color.slice(start, start + 2), 16));
    const moved = channels.map((value) => value + Math.round((this.next() * 2 - 1) * amount));
    return moved.map((value) => Math.max(0, Math.min(255, value)).toString(16).padStart(2, "0")).join("");
  }
}
