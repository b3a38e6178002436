// Without a yes, no project is sent, and none is deleted.
(/** @type {string} */ project) =>
  [confirm("[[Move the project with all its images and captions to the bin?]]") ? project : null]
