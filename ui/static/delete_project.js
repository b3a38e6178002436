// Without a yes, no project is sent, and none is deleted.
async (/** @type {string} */ project) =>
  [await window.limner.ask("[[Move the project with all its images and captions to the bin?]]") ? project : null]
