// A run is started from any tab. On a phone, and below open settings, it is out of sight then.
() => {
  document.querySelector("#tab-train-button").click();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    const status = document.querySelector("#status"), { top, bottom } = status.getBoundingClientRect();
    const isHidden = top < 0 || bottom > innerHeight - 150; // the bar with Start lies over the end of the page
    if (isHidden) status.scrollIntoView({ behavior: "smooth", block: "center" });
  }));
}
