/**
 * Turns avatars into pixels and pixels into PNG files.
 *
 * Knows nothing of the portrait world: it gets DiceBear options and gives bytes. The PNG writer is our own because
 * the one in resvg writes RGBA at a fixed compression; opaque RGB with the best row filter is a third smaller.
 */

import { deflateSync, crc32 as zlibCrc32 } from "node:zlib";

import { createAvatar } from "@dicebear/core";
import * as designs from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

/** Draws one avatar on white and returns its pixels as RGB bytes, row by row. */
export function renderPixels(design, options, size) {
  const svg = createAvatar(designs[design], options).toString();
  const { pixels } = new Resvg(svg, { fitTo: { mode: "width", value: size }, font: { loadSystemFonts: false } }).render();
  const rgb = Buffer.alloc(size * size * 3);
  for (let index = 0; index < size * size; index += 1) {
    // resvg gives premultiplied alpha, so white shines through by plain addition.
    const white = 255 - pixels[index * 4 + 3];
    for (let channel = 0; channel < 3; channel += 1) {
      rgb[index * 3 + channel] = Math.min(255, pixels[index * 4 + channel] + white);
    }
  }
  return rgb;
}

/** Encodes square RGB pixels as a PNG, trying each row filter on the whole picture and keeping the smallest file. */
export function encodePng(rgb, size) {
  const compressed = [0, 1, 2, 4]
    .map((filter) => deflateSync(filterRows(rgb, size, filter), { level: 9, memLevel: 9 }))
    .reduce((best, candidate) => (candidate.length < best.length ? candidate : best));
  const header = Buffer.alloc(13);
  header.writeUInt32BE(size, 0);
  header.writeUInt32BE(size, 4);
  header.set([8, 2, 0, 0, 0], 8); // 8 bits a channel, RGB, no interlace
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", compressed), chunk("IEND", Buffer.alloc(0))]);
}

/** PNG filter types 0 (none), 1 (left), 2 (up) and 4 (Paeth), the same for every row. */
function filterRows(rgb, size, filter) {
  const stride = size * 3;
  const rows = Buffer.alloc((stride + 1) * size);
  for (let y = 0; y < size; y += 1) {
    rows[y * (stride + 1)] = filter;
    for (let x = 0; x < stride; x += 1) {
      const left = x >= 3 ? rgb[y * stride + x - 3] : 0;
      const up = y > 0 ? rgb[(y - 1) * stride + x] : 0;
      const corner = x >= 3 && y > 0 ? rgb[(y - 1) * stride + x - 3] : 0;
      const guess = { 0: 0, 1: left, 2: up, 4: paeth(left, up, corner) }[filter];
      rows[y * (stride + 1) + 1 + x] = (rgb[y * stride + x] - guess) & 0xff;
    }
  }
  return rows;
}

/** The neighbour closest to left + up - corner (PNG specification, section 9.4). */
function paeth(left, up, corner) {
  const distances = [left, up, corner].map((value) => Math.abs(left + up - corner - value));
  if (distances[0] <= distances[1] && distances[0] <= distances[2]) return left;
  return distances[1] <= distances[2] ? up : corner;
}

function chunk(name, data) {
  const body = Buffer.concat([Buffer.from(name, "latin1"), data]);
  const frame = Buffer.alloc(8);
  frame.writeUInt32BE(data.length, 0);
  frame.writeUInt32BE(zlibCrc32(body), 4);
  return Buffer.concat([frame.subarray(0, 4), body, frame.subarray(4)]);
}
