import js from "@eslint/js";

const rules = {
  ...js.configs.recommended.rules,
  "no-undef": "off", // tsc knows all names
  "eqeqeq": "error",
  "no-var": "error",
  "prefer-const": "error",
};

export default [
  // Gradio runs the scripts as functions, so each has a scope of its own.
  { files: ["ui/static/*.js"], languageOptions: { sourceType: "commonjs" }, rules },
  { files: ["tests/browser_code/*.js"], rules },
];
