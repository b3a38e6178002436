/**
 * Draws the two example datasets: the first held-out character and the first held-out style (subjects.mjs).
 *
 *     node draw_examples.mjs [FOLDER]      default: ../../datasets
 *     node draw_examples.mjs FOLDER all    all subjects, and other pictures of the characters to recognise them by
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { Random } from "./random.mjs";
import { encodePng, renderPixels } from "./raster.mjs";
import { CHARACTERS, FURTHER_CHARACTERS, MEASURED_CHARACTERS, characterPerson, subjects } from "./subjects.mjs";
import { optionsFor } from "./world.mjs";

const SIZE = 256;
const RECOGNITION = { size: 128, count: 120, seed: 8101 };

function writeDataset(folder, { design, pictures }) {
  mkdirSync(folder, { recursive: true });
  pictures.forEach(({ options, caption }, index) => {
    const stem = join(folder, String(index + 1).padStart(2, "0"));
    writeFileSync(`${stem}.png`, encodePng(renderPixels(design, options, SIZE), SIZE));
    writeFileSync(`${stem}.txt`, `${caption}\n`);
  });
}

/** FOLDER/characters.rgb and .jsonl: pictures of the characters that no adapter is trained on. */
function writeRecognition(folder) {
  const { size, count, seed } = RECOGNITION;
  const drawn = [CHARACTERS, FURTHER_CHARACTERS, MEASURED_CHARACTERS].flatMap((characters, index) => {
    const random = new Random(seed + index);
    const people = characters.flatMap((character) =>
      Array.from({ length: count }, () => ({ character: character.name, ...characterPerson(character, random) })),
    );
    return people.map((person) => ({
      line: `${JSON.stringify(person)}\n`, pixels: renderPixels(person.style, optionsFor(person, random), size),
    }));
  });
  writeFileSync(join(folder, "characters.rgb"), Buffer.concat(drawn.map(({ pixels }) => pixels)));
  writeFileSync(join(folder, "characters.jsonl"), drawn.map(({ line }) => line).join(""));
}

const [folder = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "datasets"), all] = process.argv.slice(2);
const measured = subjects().find((subject) => subject.character);
// The example names its class, as the documentation advises. The subjects that the benchmarks measure do not.
const withClass = (picture) => ({ ...picture, caption: picture.caption.replace(/^\w+, /, "$&a person, ") });
const character = { ...measured, pictures: measured.pictures.map(withClass) };
const style = subjects().find((subject) => !subject.character);

const REMAKE = `To draw the pictures again (Node 20.15 or newer; the same files come out):

    cd scripts/pretrain_micro
    npm ci
    node draw_examples.mjs
`;

const CHARACTER_LICENSE = `# Example dataset: a character

${character.pictures.length} drawings of one invented person (long pink hair, brown skin, round glasses) with captions,
256 x 256 pixels, trigger word \`miraxo\`. No real person is shown, and nothing comes from a generative model.

* **Design:** [Avatar Illustration System](https://www.figma.com/community/file/829741575478342595) by
  [Micah Lanier](https://dribbble.com/micahlanier), licensed under
  [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
* **Changes made:** parts were chosen and recoloured, put together and rasterised with
  [DiceBear](https://www.dicebear.com) 9.4.3 (code under the MIT License, (c) Florian Koerner).
* **These pictures** are under the same CC BY 4.0: use them freely and name Micah Lanier. The captions are CC0 1.0.

${REMAKE}`;

const STYLE_LICENSE = `# Example dataset: a style

${style.pictures.length} drawings of different invented people in one style, with captions, 256 x 256 pixels, trigger
words \`pxlo style\`. No real person is shown, and nothing comes from a generative model.

* **Design:** [Pixel Art](https://www.figma.com/community/file/1198754108850888330) by
  [DiceBear](https://www.dicebear.com), dedicated to the public domain under
  [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/).
* **Changes made:** parts were chosen and recoloured, put together and rasterised with DiceBear 9.4.3 (code under the
  MIT License, (c) Florian Koerner).
* **These pictures and captions** are CC0 1.0 as well: no conditions.

${REMAKE}`;

if (all) {
  for (const subject of subjects()) writeDataset(join(folder, subject.name), subject);
  writeRecognition(folder);
} else {
  for (const [name, subject, license] of [
    ["example-character", character, CHARACTER_LICENSE],
    ["example-style", style, STYLE_LICENSE],
  ]) {
    writeDataset(join(folder, name), subject);
    writeFileSync(join(folder, name, "LICENSE.md"), license);
  }
}
