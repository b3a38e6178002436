// The state of the active run, in the head of the page, leads to that run.
element.addEventListener("click", () => {
  document.querySelector("#tab-train-button").click();
  trigger("select");
});
