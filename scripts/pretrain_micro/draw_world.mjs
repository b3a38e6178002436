/**
 * Draws the world as raw RGB pictures with one JSON line of attributes each.
 *
 *     node draw_world.mjs FOLDER SIZE COUNT EXTRA_COUNT SEED
 *
 * FOLDER/world.rgb has COUNT pictures of the pre-training designs in turn, FOLDER/decoder.rgb EXTRA_COUNT of each
 * decoder-only design, FOLDER/held_out.rgb 100 of each held-out design; FOLDER/NAME.jsonl says what is in them.
 * A file appears under its own name only when it is complete.
 */

import { closeSync, mkdirSync, openSync, renameSync, writeSync } from "node:fs";
import { join } from "node:path";

import { Random } from "./random.mjs";
import { renderPixels } from "./raster.mjs";
import * as world from "./world.mjs";

const HELD_OUT_COUNT = 100;
const PROGRESS_EVERY = 5000;

function* people(count, random) {
  const names = Object.keys(world.DESIGNS);
  let drawn = 0;
  while (drawn < count) {
    const person = world.samplePerson(names[drawn % names.length], random);
    if (world.isHeldOut(person)) continue;
    drawn += 1;
    yield { design: person.style, options: world.optionsFor(person, random), attributes: person };
  }
}

function* strangers(designs, count, random) {
  for (const design of designs) {
    for (let index = 0; index < count; index += 1) {
      const { known, options } = world.strangerOptions(random);
      yield { design, options, attributes: { style: design, ...known } };
    }
  }
}

function write(folder, name, size, pictures) {
  const paths = [join(folder, `${name}.rgb`), join(folder, `${name}.jsonl`)];
  const [pixels, lines] = paths.map((path) => openSync(`${path}.part`, "w"));
  let count = 0;
  for (const { design, options, attributes } of pictures) {
    writeSync(pixels, renderPixels(design, options, size));
    writeSync(lines, `${JSON.stringify(attributes)}\n`);
    count += 1;
    if (count % PROGRESS_EVERY === 0) console.log(`${name}: ${count} pictures`);
  }
  closeSync(pixels);
  closeSync(lines);
  for (const path of paths) renameSync(`${path}.part`, path);
  console.log(`${name}: ${count} pictures, done`);
}

const [folder, ...numbers] = process.argv.slice(2);
const [size, count, extraCount, seed] = numbers.map(Number);
mkdirSync(folder, { recursive: true });
write(folder, "held_out", size, strangers(world.HELD_OUT_DESIGNS, HELD_OUT_COUNT, new Random(seed + 2)));
write(folder, "decoder", size, strangers(world.DECODER_DESIGNS, extraCount, new Random(seed + 1)));
write(folder, "world", size, people(count, new Random(seed)));
