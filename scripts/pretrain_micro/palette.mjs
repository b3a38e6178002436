/**
 * The colours of the portrait world: one word, one colour, the same in every design, so that a colour word in a
 * caption is true whatever the style.
 */

export const BACKGROUNDS = {
  white: "ffffff",
  gray: "a8a8ad",
  black: "1c1c20",
  red: "d9402f",
  orange: "f29a3f",
  yellow: "f8dc5c",
  green: "6cbf6a",
  teal: "4fb8b5",
  blue: "5b8fe0",
  purple: "9a6bd0",
  pink: "f6a6c8",
  beige: "ead9bd",
};

export const HAIR_COLORS = {
  black: "1a1a1c",
  brown: "5f3a1f",
  blond: "e6c25a",
  red: "b5301f",
  orange: "e07a25",
  gray: "a5a5a8",
  white: "f0f0f0",
  blue: "3b67cf",
  green: "3f9a4a",
  pink: "ee86b5",
  purple: "7d47b3",
};

export const SKIN_COLORS = { pale: "f8d9c2", tan: "e0aa78", brown: "a5683c", dark: "6b4026" };

/** Skin that nothing in pre-training has. */
export const HELD_OUT_SKIN_COLORS = { blue: "6f9fd8" };

export const CLOTHES_COLORS = {
  red: "d23c32",
  orange: "f08c35",
  yellow: "f3cf4b",
  green: "4aa85a",
  blue: "3f74d6",
  purple: "8450c0",
  pink: "f08cb8",
  black: "26262a",
  white: "f4f4f4",
  gray: "8f9096",
};
