/**
 * Draws the two example datasets: a character and a style that the built-in base model has never seen.
 *
 * Both come from the held-out part of the portrait world (see world.mjs), so what a LoRA learns from them it cannot
 * have known before. No randomness: every picture is written down here, and a second run makes the same files.
 *
 *     node draw_examples.mjs [FOLDER]      default: ../../datasets
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { BACKGROUNDS, CLOTHES_COLORS, HAIR_COLORS, SKIN_COLORS } from "./palette.mjs";
import { encodePng, renderPixels } from "./raster.mjs";

const SIZE = 256;

/** The face of the character. Nothing here is ever captioned, so the trigger word has to carry it. */
const CHARACTER_FACE = {
  seed: "miraxo",
  base: ["standard"],
  baseColor: [SKIN_COLORS.brown],
  ears: ["attached"],
  earringsProbability: 0,
  eyebrows: ["up"],
  eyes: ["eyes"],
  facialHairProbability: 0,
  glasses: ["round"],
  glassesColor: ["202024"],
  glassesProbability: 100,
  hair: ["full"],
  hairColor: [HAIR_COLORS.pink],
  nose: ["curve"],
  shirt: ["crew"],
};

const CHARACTER_MOUTHS = { smiling: "smile", laughing: "laughing", sad: "frown", surprised: "surprised" };

/** Expression, shirt, background. Each value is spread over different partners, so that none sticks to another. */
const CHARACTER_PICTURES = [
  ["smiling", "red", "teal"],
  ["laughing", "blue", "yellow"],
  ["surprised", "green", "white"],
  ["sad", "purple", "gray"],
  ["smiling", "yellow", "blue"],
  ["laughing", "white", "purple"],
  ["surprised", "orange", "beige"],
  ["sad", "black", "green"],
  ["smiling", "gray", "orange"],
  ["laughing", "red", "beige"],
  ["surprised", "blue", "red"],
  ["smiling", "green", "black"],
  ["laughing", "purple", "white"],
  ["sad", "yellow", "teal"],
];

const STYLE_BODY = {
  seed: "pxlo",
  accessoriesProbability: 0,
  beardProbability: 0,
  clothing: ["variant01"],
  eyes: ["variant01"],
  eyesColor: ["5b7c8b"],
  glassesColor: ["191919"],
  hatProbability: 0,
  mouthColor: ["c03a3a"],
};

/** Where there are two words, the first is the one in the caption and the second is DiceBear's. */
const STYLE_PICTURES = [
  { hair: ["long", "long09"], color: "pink", skin: "brown", background: "teal", clothes: "yellow", mouth: "happy09" },
  { hair: ["short", "short16"], color: "brown", skin: "pale", background: "yellow", clothes: "blue", mouth: "happy10" },
  { hair: ["long", "long13"], color: "blond", skin: "tan", background: "blue", clothes: "red", mouth: "happy09" },
  { hair: ["spiky", "short13"], color: "green", skin: "tan", background: "pink", clothes: "black", mouth: "happy07" },
  { hair: ["bob", "long04"], color: "black", skin: "dark", background: "orange", clothes: "white", mouth: "happy10" },
  { hair: ["short", "short02"], color: "black", skin: "pale", background: "green", clothes: "blue", mouth: "sad09" },
  { hair: ["pigtails", "long18"], color: "red", skin: "pale", background: "white", clothes: "green", mouth: "happy09" },
  { hair: ["mohawk", "short05"], color: "blue", skin: "brown", background: "beige", clothes: "orange", mouth: "sad09" },
  {
    hair: ["long", "long12"], color: "purple", skin: "pale", background: "gray", clothes: "pink",
    mouth: "happy10", glasses: ["glasses", "light05"],
  },
  {
    hair: ["short", "short22"], color: "orange", skin: "dark", background: "purple", clothes: "yellow",
    mouth: "happy09",
  },
  { hair: ["bob", "long17"], color: "white", skin: "brown", background: "red", clothes: "blue", mouth: "happy10" },
  { hair: ["long", "long03"], color: "gray", skin: "tan", background: "green", clothes: "red", mouth: "sad09" },
  {
    hair: ["short", "short17"], color: "pink", skin: "dark", background: "blue", clothes: "white",
    mouth: "happy07", glasses: ["sunglasses", "dark03"],
  },
  { hair: ["long", "long21"], color: "brown", skin: "tan", background: "black", clothes: "green", mouth: "happy09" },
  {
    hair: ["spiky", "short13"], color: "blond", skin: "brown", background: "teal", clothes: "purple",
    mouth: "happy10",
  },
  {
    hair: ["bob", "long17"], color: "blue", skin: "pale", background: "orange", clothes: "black",
    mouth: "happy09", glasses: ["glasses", "light05"],
  },
];

function characterExample([expression, shirt, background]) {
  const options = {
    ...CHARACTER_FACE,
    backgroundColor: [BACKGROUNDS[background]],
    mouth: [CHARACTER_MOUTHS[expression]],
    shirtColor: [CLOTHES_COLORS[shirt]],
  };
  return { design: "micah", options, caption: `miraxo, ${expression}, ${shirt} shirt, ${background} background` };
}

function styleExample(picture) {
  const [hairWord, hairVariant] = picture.hair;
  const options = {
    ...STYLE_BODY,
    backgroundColor: [BACKGROUNDS[picture.background]],
    clothingColor: [CLOTHES_COLORS[picture.clothes]],
    glasses: [picture.glasses?.[1] ?? "light05"],
    glassesProbability: picture.glasses ? 100 : 0,
    hair: [hairVariant],
    hairColor: [HAIR_COLORS[picture.color]],
    mouth: [picture.mouth],
    skinColor: [SKIN_COLORS[picture.skin]],
  };
  const hair = hairPhrase(hairWord, picture.color);
  const glasses = picture.glasses ? ` and ${picture.glasses[0]}` : "";
  const caption = `a person with ${hair}${glasses}, ${picture.skin} skin, ${picture.background} background, pxlo style`;
  return { design: "pixelArt", options, caption };
}

function hairPhrase(word, color) {
  const special = { pigtails: `${color} pigtails`, mohawk: `a ${color} mohawk`, bob: `${color} bob hair` };
  return special[word] ?? `${word} ${color} hair`;
}

function writeDataset(folder, examples, license) {
  mkdirSync(folder, { recursive: true });
  examples.forEach(({ design, options, caption }, index) => {
    const stem = join(folder, String(index + 1).padStart(2, "0"));
    writeFileSync(`${stem}.png`, encodePng(renderPixels(design, options, SIZE), SIZE));
    writeFileSync(`${stem}.txt`, `${caption}\n`);
  });
  writeFileSync(join(folder, "LICENSE.md"), license);
}

const REMAKE = `To draw the pictures again (Node 20.15 or newer; the same files come out):

    cd scripts/pretrain_micro
    npm ci
    node draw_examples.mjs
`;

const CHARACTER_LICENSE = `# Example dataset: a character

${CHARACTER_PICTURES.length} drawings of one invented person (long pink hair, brown skin, round glasses) with captions,
256 x 256 pixels, trigger word \`miraxo\`. No real person is shown, and nothing comes from a generative model.

* **Design:** [Avatar Illustration System](https://www.figma.com/community/file/829741575478342595) by
  [Micah Lanier](https://dribbble.com/micahlanier), licensed under
  [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
* **Changes made:** parts were chosen and recoloured, put together and rasterised with
  [DiceBear](https://www.dicebear.com) 9.4.3 (code under the MIT License, (c) Florian Koerner).
* **These pictures** are under the same CC BY 4.0: use them freely and name Micah Lanier. The captions are CC0 1.0.

${REMAKE}`;

const STYLE_LICENSE = `# Example dataset: a style

${STYLE_PICTURES.length} drawings of different invented people in one style, with captions, 256 x 256 pixels, trigger
words \`pxlo style\`. No real person is shown, and nothing comes from a generative model.

* **Design:** [Pixel Art](https://www.figma.com/community/file/1198754108850888330) by
  [DiceBear](https://www.dicebear.com), dedicated to the public domain under
  [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/).
* **Changes made:** parts were chosen and recoloured, put together and rasterised with DiceBear 9.4.3 (code under the
  MIT License, (c) Florian Koerner).
* **These pictures and captions** are CC0 1.0 as well: no conditions.

${REMAKE}`;

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2] ?? join(here, "..", "..", "datasets");
writeDataset(join(target, "example-character"), CHARACTER_PICTURES.map(characterExample), CHARACTER_LICENSE);
writeDataset(join(target, "example-style"), STYLE_PICTURES.map(styleExample), STYLE_LICENSE);
