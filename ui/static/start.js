() => {
  // Gradio would set the browser's language as that of the page, whatever language the page is in.
  document.documentElement.lang = "{language}";

  // Gradio counts the seconds of its own start in each frame, and goes on for as long as the page is open, although
  // what shows them is gone. Each count reads the clock and then asks for its next frame, which is canceled here.
  performance.now = () => {
    if (new Error().stack?.includes("/statustracker-")) {
      const next = requestAnimationFrame(() => {}) + 1;
      queueMicrotask(() => cancelAnimationFrame(next));
    }
    return Performance.prototype.now.call(performance);
  };
  setTimeout(() => { Reflect.deleteProperty(performance, "now"); }, 1000);
}
