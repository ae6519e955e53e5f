/** Stores documents on the server, if it accepts them (KNOWLEDGE_UPLOADS). */

import { authorization } from "./key.js";

/**
 * Store a file.
 *
 * @param {File} file
 * @returns {Promise<string>} a sentence about the problem; empty if it was stored
 */
export async function upload(file) {
  const address = `/v1/knowledge/documents/${encodeURIComponent(file.name)}`;
  try {
    const response = await fetch(address, { method: "PUT", headers: authorization(), body: file });
    if (response.ok) return "";
    const { error } = await response.json();
    return `${error.message}.`;
  } catch {
    return "The server cannot be reached."; // or the response was not its JSON
  }
}

/**
 * Accept files that are dropped on the page.
 *
 * @param {() => boolean} mayDrop
 * @param {(files: File[]) => void} onFiles
 */
export function acceptDrops(mayDrop, onFiles) {
  const hasFiles = ({ dataTransfer }) => mayDrop() && dataTransfer?.types.includes("Files");
  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // allows the drop
    mark(true);
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? mark(false));
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    onFiles([...event.dataTransfer.files]);
  });
}
