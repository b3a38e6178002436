import js from "@eslint/js";

const rules = {
  ...js.configs.recommended.rules,
  "no-undef": "off", // tsc knows all names
  "eqeqeq": "error",
  "no-var": "error",
  "prefer-const": "error",
};

// A value is set as text. Markup is a template that is written out where it is used, and has no values.
const MARKUP = /^(innerHTML|outerHTML|srcdoc)$/, PARSING = /^(insertAdjacentHTML|write|writeln|setHTMLUnsafe|parseHTMLUnsafe|parseFromString|createContextualFragment)$/;
const forbidden = (selector, message) => ({ selector, message });
const ours = {
  ...rules,
  "no-eval": "error",
  "no-new-func": "error",
  "no-script-url": "error",
  "no-restricted-syntax": [
    "error",
    forbidden(`AssignmentExpression[left.property.name=${MARKUP}]:not([right.type=TemplateLiteral][right.expressions.length=0])`,
      "Set textContent: a value is no markup."),
    forbidden(`AssignmentExpression[left.property.name=${MARKUP}][operator!="="]`, "Set textContent: a value is no markup."),
    forbidden(`AssignmentExpression[left.computed=true][left.property.value=${MARKUP}]`, "Set textContent: a value is no markup."),
    forbidden(`CallExpression[callee.property.name=${PARSING}]`, "Set textContent: a value is no markup."),
    forbidden("CallExpression[callee.name=/^set(Timeout|Interval)$/][arguments.0.type=/Literal$/]", "Pass a function."),
    forbidden("CallExpression[callee.property.name=setAttribute][arguments.0.value=/^(on|srcdoc$)/i]", "Add a listener."),
  ],
};

export default [
  // Gradio runs the scripts as functions, so each has a scope of its own.
  { files: ["ui/static/*.js"], languageOptions: { sourceType: "commonjs" }, rules: ours },
  { files: ["tests/browser_code/*.js"], rules },
];
