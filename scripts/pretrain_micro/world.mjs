/**
 * The portrait world: what a person can look like, which designs can draw it, and what stays out of pre-training.
 *
 * A person is a plain object of words (hair, skin, glasses ...). Every word is true in the picture: the variants were
 * looked at and named by hand, the colors are our own (palette.mjs), and a person only gets what its design can draw.
 */

import { BACKGROUNDS, CLOTHES_COLORS, HAIR_COLORS, HELD_OUT_SKIN_COLORS, SKIN_COLORS } from "./palette.mjs";

const variants = (...numbers) => numbers.map((number) => `variant${number}`);

/** Hair words that are really headwear: they hide the hair, so no hair color is said. */
const HEADWEAR = ["beanie", "hat", "hijab", "turban"];

/** Hair that mostly comes without a beard, as people expect from the words. */
const BEARDLESS_HAIR = ["bob", "braid", "bun", "flowers", "hijab", "long", "pigtails", "ponytail", "two buns"];

/** Parts that DiceBear adds by chance are off unless a person has them. */
const NOTHING_BY_CHANCE = {
  accessoriesProbability: 0,
  beardProbability: 0,
  earringsProbability: 0,
  facialHairProbability: 0,
  featuresProbability: 0,
  frecklesProbability: 0,
  glassesProbability: 0,
  hairAccessoriesProbability: 0,
  hatProbability: 0,
  maskProbability: 0,
  rearHairProbability: 0,
};

/** Open Peeps heads whose hair takes a color; all others are drawn in black. */
const TINTED_PEEPS = ["bangs", "grayBun", "grayShort", "mohawk", "mohawk2", "short4"];

/**
 * The designs of pre-training. Each lists its DiceBear variants under the word that is true of them;
 * `options` adds what is particular to the design, given the person and the shaded colors.
 */
export const DESIGNS = {
  lorelei: {
    hairOption: "hair",
    hair: {
      short: variants("01", "03", "08"),
      curly: variants("05", "24"),
      spiky: variants("20"),
      bob: variants("13", "19"),
      long: variants("16", "21"),
      bun: variants("38"),
      "two buns": variants("26"),
      ponytail: variants("33"),
      mohawk: variants("27"),
      bald: variants("34"),
    },
    glasses: { glasses: variants("01", "03", "04"), sunglasses: variants("02") },
    beards: { beard: variants("01", "02") },
    expressions: {
      smiling: { mouth: ["happy02"], eyes: ["variant24"], eyebrows: ["variant07"] },
      laughing: { mouth: ["happy16"], eyes: ["variant19"], eyebrows: ["variant05"] },
      sad: { mouth: ["sad05"], eyes: ["variant03"], eyebrows: ["variant01"] },
      angry: { mouth: ["sad06"], eyes: ["variant20"], eyebrows: ["variant13"] },
      surprised: { mouth: ["sad01"], eyes: ["variant09"], eyebrows: ["variant05"] },
    },
    fixed: { nose: ["variant04"], scale: 130, translateY: 2 },
    earrings: true,
    options: (person, colors) => ({
      hairColor: [colors.hair],
      skinColor: [colors.skin],
      beard: [person.beardVariant],
      beardProbability: person.beard ? 100 : 0,
      glasses: [person.glassesVariant],
      glassesProbability: person.glasses ? 100 : 0,
      earringsProbability: person.earrings ? 100 : 0,
    }),
  },
  adventurer: {
    hairOption: "hair",
    hair: {
      bob: ["long02", "long21", "long01", "long05"],
      long: ["long06", "long09", "long17", "long24"],
      flowers: ["long03", "long08"],
      bun: ["short05"],
      "two buns": ["long23", "long13"],
      pigtails: ["long15", "long14"],
      braid: ["long16"],
      ponytail: ["long19"],
      short: ["short01", "short04", "short11", "short14"],
      curly: ["short03", "short17", "short18"],
      spiky: ["short16"],
      mohawk: ["short15"],
      bald: ["short19"],
    },
    glasses: { glasses: variants("02", "03", "05"), sunglasses: variants("01") },
    beards: { moustache: ["mustache"] },
    expressions: {
      smiling: { mouth: variants("01"), eyes: variants("26"), eyebrows: variants("10") },
      laughing: { mouth: variants("26"), eyes: variants("19"), eyebrows: variants("12") },
      sad: { mouth: variants("14"), eyes: variants("15"), eyebrows: variants("07") },
      angry: { mouth: variants("11"), eyes: variants("12"), eyebrows: variants("01") },
      surprised: { mouth: variants("15"), eyes: variants("01"), eyebrows: variants("12") },
      neutral: { mouth: variants("09"), eyes: variants("18"), eyebrows: variants("10") },
    },
    fixed: { scale: 115 },
    earrings: true,
    features: ["freckles", "blush"],
    options: (person, colors) => ({
      hairColor: [colors.hair],
      skinColor: [colors.skin],
      features: [person.beardVariant ?? person.feature],
      featuresProbability: person.beard || person.feature ? 100 : 0,
      glasses: [person.glassesVariant],
      glassesProbability: person.glasses ? 100 : 0,
      earringsProbability: person.earrings ? 100 : 0,
    }),
  },
  openPeeps: {
    hairOption: "head",
    hair: {
      afro: ["afro"],
      bob: ["bangs", "bangs2", "medium1", "mediumBangs"],
      long: ["long", "longBangs", "mediumStraight"],
      curly: ["longCurly", "dreads1"],
      bun: ["bun2", "grayBun"],
      "two buns": ["buns"],
      braid: ["cornrows2"],
      "flat top": ["flatTop"],
      mohawk: ["mohawk", "mohawk2"],
      bald: ["noHair1"],
      short: ["short1", "short2", "short4", "grayShort", "pomp"],
      beanie: ["hatBeanie"],
      hat: ["hatHip"],
      hijab: ["hijab"],
      turban: ["turban"],
    },
    glasses: { glasses: ["glasses", "glasses2", "glasses3"], sunglasses: ["sunglasses"] },
    beards: {
      beard: ["full", "full2", "full3"],
      moustache: ["moustache1", "moustache3", "moustache6"],
      goatee: ["goatee1", "goatee2"],
    },
    expressions: {
      smiling: { face: ["smile"] },
      laughing: { face: ["smileBig"] },
      sad: { face: ["solemn"] },
      angry: { face: ["rage"] },
      surprised: { face: ["hectic"] },
      neutral: { face: ["serious"] },
    },
    fixed: { scale: 112 },
    shirts: true,
    hairIsBlack: (variant) => !TINTED_PEEPS.includes(variant),
    options: (person, colors) => ({
      headContrastColor: [colors.hair],
      skinColor: [colors.skin],
      clothingColor: [colors.shirt],
      accessories: [person.glassesVariant],
      accessoriesProbability: person.glasses ? 100 : 0,
      facialHair: [person.beardVariant],
      facialHairProbability: person.beard ? 100 : 0,
    }),
  },
  micah: {
    hairOption: "hair",
    hair: {
      short: ["fonze"],
      mohawk: ["mrT"],
      long: ["full"],
      bald: ["mrClean"],
      bob: ["pixie"],
      turban: ["turban"],
    },
    glasses: { glasses: ["round", "square"] },
    beards: { beard: ["beard"] },
    expressions: {
      smiling: { mouth: ["smile"], eyes: ["eyes"], eyebrows: ["up"] },
      laughing: { mouth: ["laughing"], eyes: ["smiling"], eyebrows: ["up"] },
      sad: { mouth: ["frown"], eyes: ["eyes"], eyebrows: ["down"] },
      surprised: { mouth: ["surprised"], eyes: ["eyesShadow"], eyebrows: ["up"] },
    },
    fixed: { nose: ["curve"], scale: 112 },
    earrings: true,
    shirts: true,
    beardTakesHairColor: true,
    options: (person, colors, random) => ({
      baseColor: [colors.skin],
      hairColor: [colors.hair],
      shirtColor: [colors.shirt],
      glasses: [person.glassesVariant],
      glassesColor: [random.shade("202024", 6)],
      glassesProbability: person.glasses ? 100 : 0,
      facialHair: [person.beardVariant],
      facialHairColor: [HEADWEAR.includes(person.hair) ? "202020" : colors.hair],
      facialHairProbability: person.beard ? 100 : 0,
      earringColor: ["f4d150"],
      earringsProbability: person.earrings ? 100 : 0,
    }),
  },
  personas: {
    hairOption: "hair",
    hair: {
      long: ["long", "extraLong"],
      bob: ["bobCut", "bobBangs"],
      afro: ["curly"],
      "flat top": ["curlyHighTop"],
      bun: ["straightBun"],
      bald: ["bald"],
      short: ["shortCombover", "fade", "buzzcut"],
      mohawk: ["mohawk"],
      pigtails: ["pigtails"],
      beanie: ["beanie"],
      ponytail: ["sideShave"],
    },
    glasses: { glasses: ["glasses"], sunglasses: ["sunglasses"] },
    beards: { beard: ["beardMustache", "pyramid"], moustache: ["walrus"], goatee: ["goatee"] },
    expressions: {
      smiling: { mouth: ["smile"], eyes: ["open"] },
      laughing: { mouth: ["bigSmile"], eyes: ["happy"] },
      sad: { mouth: ["frown"], eyes: ["sleep"] },
      surprised: { mouth: ["surprise"], eyes: ["open"] },
    },
    fixed: { nose: ["mediumRound"], body: ["rounded"], scale: 125, translateY: -2 },
    shirts: true,
    beardTakesHairColor: true,
    options: (person, colors) => ({
      hairColor: [colors.hair],
      skinColor: [colors.skin],
      clothingColor: [colors.shirt],
      ...(person.glasses ? { eyes: [person.glassesVariant] } : {}),
      facialHair: [person.beardVariant],
      facialHairProbability: person.beard ? 100 : 0,
    }),
  },
  toonHead: {
    hairOption: "hair",
    hair: {
      bun: ["bun"],
      spiky: ["spiky"],
      short: ["sideComed", "undercut"],
      long: ["sideComed", "spiky"],
      bob: ["sideComed", "undercut"],
    },
    glasses: {},
    beards: {
      beard: ["fullBeard", "longBeard"],
      moustache: ["moustacheTwirl"],
      goatee: ["chin", "chinMoustache"],
    },
    expressions: {
      smiling: { mouth: ["smile"], eyes: ["happy"], eyebrows: ["happy"] },
      laughing: { mouth: ["laugh"], eyes: ["bow"], eyebrows: ["happy"] },
      sad: { mouth: ["sad"], eyes: ["humble"], eyebrows: ["sad"] },
      angry: { mouth: ["angry"], eyes: ["happy"], eyebrows: ["angry"] },
      surprised: { mouth: ["agape"], eyes: ["wide"], eyebrows: ["raised"] },
    },
    fixed: { scale: 128, translateY: -6 },
    shirts: true,
    options: (person, colors, random) => ({
      hairColor: [colors.hair],
      skinColor: [colors.skin],
      clothesColor: [colors.shirt],
      beard: [person.beardVariant],
      beardProbability: person.beard ? 100 : 0,
      rearHair: { long: ["longStraight", "longWavy"], bob: ["shoulderHigh", "neckHigh"] }[person.hair] ?? [],
      rearHairProbability: ["long", "bob"].includes(person.hair) ? 100 : 0,
    }),
  },
};

/** Designs that only the decoder sees, so that it learns more kinds of drawing than the base can name. */
export const DECODER_DESIGNS = ["notionists", "croodles", "bigEars", "miniavs"];

/** Designs that nothing is trained on: they are the styles a LoRA can learn. */
export const HELD_OUT_DESIGNS = ["pixelArt", "bigSmile", "dylan"];

/**
 * Combinations that no picture of pre-training has, whatever the design: they are the characters a LoRA can learn.
 * The second has a skin that the world does not know at all.
 */
export const HELD_OUT_CHARACTERS = [
  { hair: ["long"], hairColor: ["pink"], skin: ["brown", "dark"] },
  { hair: ["mohawk"], hairColor: ["orange"], skin: ["blue"] },
  { hair: ["afro"], hairColor: ["blue"], skin: ["pale", "tan"] },
  { hair: ["spiky"], hairColor: ["green"], skin: ["brown", "dark"] },
];

export function isHeldOut(person) {
  return HELD_OUT_CHARACTERS.some((character) =>
    Object.entries(character).every(([attribute, words]) => words.includes(person[attribute])),
  );
}

/** Glasses, beards and headwear come more often than in life: a small model learns rare things last. */
const CHANCES = { glasses: 0.4, beard: 0.5, beardOnBeardlessHair: 0.03, headwear: 0.3, earrings: 0.2, feature: 0.15 };

/** Draws a person at random from what the design offers, held-out combinations included. */
export function samplePerson(name, random) {
  const design = DESIGNS[name];
  const hair = sampleHair(design, random);
  const hairVariant = random.pick(design.hair[hair]);
  const hidden = hair === "bald" || HEADWEAR.includes(hair);
  const anyColor = random.pick(Object.keys(HAIR_COLORS));
  const beardChance = BEARDLESS_HAIR.includes(hair) ? CHANCES.beardOnBeardlessHair : CHANCES.beard;
  const beard = random.chance(beardChance) ? random.pick(Object.keys(design.beards)) : null;
  const glasses = random.chance(CHANCES.glasses) ? (random.pick(Object.keys(design.glasses)) ?? null) : null;
  const expression = random.pick(Object.keys(design.expressions));
  return {
    style: name,
    hair,
    hairVariant,
    hairColor: hidden ? null : design.hairIsBlack?.(hairVariant) ? "black" : anyColor,
    beardColor: beard && design.beardTakesHairColor && hair === "bald" ? anyColor : null,
    skin: random.pick(Object.keys(SKIN_COLORS)),
    background: random.pick(Object.keys(BACKGROUNDS)),
    shirt: design.shirts ? random.pick(Object.keys(CLOTHES_COLORS)) : null,
    expression,
    glasses,
    glassesVariant: glasses ? random.pick(design.glasses[glasses]) : null,
    beard,
    beardVariant: beard ? random.pick(design.beards[beard]) : null,
    earrings: Boolean(design.earrings) && random.chance(CHANCES.earrings),
    feature: design.features && !beard && random.chance(CHANCES.feature) ? random.pick(design.features) : null,
    tint: anyColor,
  };
}

function sampleHair(design, random) {
  const words = Object.keys(design.hair);
  const headwear = words.filter((word) => HEADWEAR.includes(word));
  return random.pick(headwear.length > 0 && random.chance(CHANCES.headwear) ? headwear : words);
}

/** The DiceBear options that draw this person. */
export function optionsFor(person, random) {
  const design = DESIGNS[person.style];
  const colors = {
    hair: random.shade(HAIR_COLORS[person.tint]),
    skin: random.shade(SKIN_COLORS[person.skin] ?? HELD_OUT_SKIN_COLORS[person.skin]),
    shirt: random.shade(CLOTHES_COLORS[person.shirt ?? "gray"]),
  };
  return {
    ...NOTHING_BY_CHANCE,
    ...design.fixed,
    ...design.expressions[person.expression],
    ...withoutEmptyChoices(design.options(person, colors, random)),
    seed: String(Math.floor(random.next() * 1e9)),
    backgroundColor: [random.shade(BACKGROUNDS[person.background])],
    [design.hairOption]: [person.hairVariant],
  };
}

/** DiceBear takes `[null]` for a variant of that name, so choices that a person does not have are left out. */
function withoutEmptyChoices(options) {
  return Object.fromEntries(
    Object.entries(options).filter(([, value]) => !Array.isArray(value) || (value.length > 0 && value[0] != null)),
  );
}

/** A person in a design outside pre-training: random parts in our colors; background, hair color and skin are known. */
export function strangerOptions(random) {
  const background = random.pick(Object.keys(BACKGROUNDS));
  const seed = String(Math.floor(random.next() * 1e9));
  const backgroundColor = [random.shade(BACKGROUNDS[background])];
  const hairColor = random.pick(Object.keys(HAIR_COLORS));
  const hairShade = random.shade(HAIR_COLORS[hairColor]);
  const skin = random.pick(Object.keys(SKIN_COLORS));
  const options = {
    seed,
    backgroundColor,
    hairColor: [hairShade],
    skinColor: [random.shade(SKIN_COLORS[skin])],
    gestureProbability: 0,
    bodyIconProbability: 0,
  };
  return { known: { background, hairColor, skin }, options };
}
