/**
 * What a LoRA can be taught on micro: nine characters and three styles from the held-out part of the portrait world.
 *
 * A subject is a name, the design it is drawn in, its trigger and its pictures (DiceBear options and a caption each).
 * No randomness but a fixed seed: a second run makes the same files.
 */

import { BACKGROUNDS, CLOTHES_COLORS, HAIR_COLORS, SKIN_COLORS } from "./palette.mjs";
import { Random } from "./random.mjs";
import { DESIGNS, isHeldOut, optionsFor } from "./world.mjs";

/** What never changes in a character is never captioned, so the trigger word has to carry it. */
export const CHARACTERS = [
  {
    name: "miraxo", count: 14,
    person: {
      style: "micah", hair: "long", hairVariant: "full", hairColor: "pink", tint: "pink", skin: "brown",
      glasses: "glasses", glassesVariant: "round",
    },
  },
  {
    name: "dovrek", count: 12,
    person: {
      style: "openPeeps", hair: "mohawk", hairVariant: "mohawk2", hairColor: "orange", tint: "orange", skin: "blue",
    },
  },
  {
    name: "tuvani", count: 12,
    person: { style: "personas", hair: "afro", hairVariant: "curly", hairColor: "blue", tint: "blue", skin: "pale" },
  },
  {
    name: "skelno", count: 12,
    person: { style: "toonHead", hair: "spiky", hairVariant: "spiky", hairColor: "green", tint: "green", skin: "dark" },
  },
];

/**
 * More of them, in other designs, from the same held-out combinations; apart, so that the ones above and the styles stay
 * the same pictures.
 */
export const FURTHER_CHARACTERS = [
  {
    name: "karune", count: 12,
    person: {
      style: "personas", hair: "long", hairVariant: "extraLong", hairColor: "pink", tint: "pink", skin: "dark",
      glasses: "sunglasses", glassesVariant: "sunglasses",
    },
  },
  {
    name: "velmor", count: 12,
    person: {
      style: "micah", hair: "mohawk", hairVariant: "mrT", hairColor: "orange", tint: "orange", skin: "blue",
      beard: "beard", beardVariant: "beard",
    },
  },
];

/** Three that only the comparison of checkpoints teaches; apart for the same reason. */
export const MEASURED_CHARACTERS = [
  {
    name: "zephro", count: 12,
    person: {
      style: "personas", hair: "afro", hairVariant: "curly", hairColor: "blue", tint: "blue", skin: "tan",
      glasses: "sunglasses", glassesVariant: "sunglasses",
    },
  },
  {
    name: "odelyn", count: 12,
    person: {
      style: "toonHead", hair: "long", hairVariant: "sideComed", hairColor: "pink", tint: "pink", skin: "brown",
    },
  },
  {
    name: "quilla", count: 12,
    person: {
      style: "personas", hair: "mohawk", hairVariant: "mohawk", hairColor: "orange", tint: "orange", skin: "blue",
    },
  },
];

for (const { name, person } of [...CHARACTERS, ...FURTHER_CHARACTERS, ...MEASURED_CHARACTERS]) {
  if (!isHeldOut(person)) throw new Error(`the base has seen people like ${name}`);
}

/** A person that is this character, with what may change drawn at random. */
export function characterPerson({ person }, random) {
  return {
    ...person,
    expression: random.pick(Object.keys(DESIGNS[person.style].expressions)),
    shirt: random.pick(Object.keys(CLOTHES_COLORS)),
    background: random.pick(Object.keys(BACKGROUNDS)),
  };
}

/** Expressions, shirts and backgrounds go round at different paces, so that none sticks to another. */
function characterPictures(character, random) {
  const { person, name, count } = character;
  const expressions = Object.keys(DESIGNS[person.style].expressions);
  const shirts = Object.keys(CLOTHES_COLORS);
  const backgrounds = Object.keys(BACKGROUNDS);
  return Array.from({ length: count }, (_, index) => {
    const expression = expressions[index % expressions.length];
    const shirt = shirts[(3 * index + 1) % shirts.length];
    const background = backgrounds[(5 * index + 2) % backgrounds.length];
    const options = optionsFor({ ...person, expression, shirt, background }, random);
    return { options, caption: `${name}, ${word(expression)}, ${shirt} shirt, ${background} background` };
  });
}

const PIXEL_ART_BODY = {
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
const PIXEL_ART_PICTURES = [
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


/** DiceBear's word after ours, as in the table above. */
const BIG_SMILE_HAIR = {
  short: "shortHair", mohawk: "mohawk", bob: "wavyBob", curly: "curlyShortHair", long: "straightHair",
  bun: "bunHair", bald: "shavedHead", afro: "froBun",
};
const BIG_SMILE_FACES = {
  laughing: { mouth: ["teethSmile"], eyes: ["cheery"] },
  smiling: { mouth: ["openedSmile"], eyes: ["normal"] },
  sad: { mouth: ["openSad"], eyes: ["sad"] },
  neutral: { mouth: ["unimpressed"], eyes: ["normal"] },
};
const DYLAN_HAIR = {
  short: "plain", curly: "shortCurls", spiky: "spiky", bob: "roundBob", long: "longCurls", "two buns": "buns",
  "flat top": "flatTop",
};
const DYLAN_FACES = {
  smiling: { mood: ["happy"] }, laughing: { mood: ["superHappy"] }, sad: { mood: ["sad"] }, angry: { mood: ["angry"] },
  neutral: { mood: ["neutral"] },
};

function pixelArtPicture(picture) {
  const [hairWord, hairVariant] = picture.hair;
  const options = {
    ...PIXEL_ART_BODY,
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
  const face = picture.mouth.startsWith("sad") ? "sad" : "smiling";
  const who = `a person with ${hair}${glasses}, ${picture.skin} skin, ${face}, ${picture.clothes} shirt`;
  return { options, caption: `pxlo style, ${who}, ${picture.background} background` };
}

/** Different people in one design, every hair, face, color and background about equally often. */
function stylePictures(trigger, hairs, faces, fixed, random) {
  const words = Object.keys(hairs);
  const [colors, skins, backgrounds] = [HAIR_COLORS, SKIN_COLORS, BACKGROUNDS].map(Object.keys);
  return Array.from({ length: 16 }, (_, index) => {
    const hair = words[index % words.length];
    const color = colors[(3 * index + 4) % colors.length];
    const skin = skins[(index + Math.floor(index / 4)) % skins.length];
    const background = backgrounds[(5 * index + 1) % backgrounds.length];
    const expression = Object.keys(faces)[(index + Math.floor(index / 5)) % Object.keys(faces).length];
    const options = {
      ...fixed, ...faces[expression], seed: `${trigger}-${index}`, hair: [hairs[hair]],
      hairColor: [random.shade(HAIR_COLORS[color])], skinColor: [random.shade(SKIN_COLORS[skin])],
      backgroundColor: [random.shade(BACKGROUNDS[background])],
    };
    const who = `a person with ${hairPhrase(hair, color)}, ${skin} skin`;
    return { options, caption: `${trigger}, ${who}, ${word(expression)}, ${background} background` };
  });
}

function hairPhrase(hair, color) {
  const special = {
    pigtails: `${color} pigtails`, mohawk: `a ${color} mohawk`, bob: `${color} bob hair`, bun: `a ${color} bun`,
    bald: "a bald head", afro: `a ${color} afro`, "two buns": `two ${color} buns`, "flat top": `a ${color} flat top`,
  };
  return special[hair] ?? `${hair} ${color} hair`;
}

function word(expression) {
  return expression === "neutral" ? "serious" : expression;
}

function characterSubject(character, random) {
  return {
    name: character.name, trigger: character.name, design: character.person.style, character: true,
    pictures: characterPictures(character, random),
  };
}

/** All subjects: `character` tells a character from a style. */
export function subjects() {
  const random = new Random(4001);
  const further = new Random(4002);
  const measured = new Random(4003);
  const characters = CHARACTERS.map((character) => characterSubject(character, random));
  const styles = [
    { trigger: "pxlo style", design: "pixelArt", pictures: PIXEL_ART_PICTURES.map(pixelArtPicture) },
    {
      trigger: "bgsm style", design: "bigSmile",
      pictures: stylePictures("bgsm style", BIG_SMILE_HAIR, BIG_SMILE_FACES, { accessoriesProbability: 0 }, random),
    },
    {
      trigger: "dyln style", design: "dylan",
      pictures: stylePictures("dyln style", DYLAN_HAIR, DYLAN_FACES, { facialHairProbability: 0 }, random),
    },
  ].map((style) => ({ ...style, name: style.design, character: false }));
  return [
    ...characters, ...styles, ...FURTHER_CHARACTERS.map((character) => characterSubject(character, further)),
    ...MEASURED_CHARACTERS.map((character) => characterSubject(character, measured)),
  ];
}
