/** Stores documents on the server, if it accepts them (KNOWLEDGE_UPLOADS). */

import { authorization } from "./key.js";

const MOST_BYTES = 50 * 2 ** 20; // as the server

/**
 * Store a file.
 *
 * @param {File} file
 * @returns {Promise<string>} the problem, as the rest of a sentence after the file's name; empty if it was stored
 */
export async function upload(file) {
  if (file.size > MOST_BYTES) return "is larger than 50 MB";
  if (!(await isReadable(file))) return "cannot be read; folders cannot be added";
  const address = `/v1/knowledge/documents/${encodeURIComponent(file.name)}`;
  try {
    const response = await fetch(address, { method: "PUT", headers: authorization(), body: file });
    if (response.ok) return "";
    const { error } = await response.json();
    return /^name: '.*' (should .*)/s.exec(error.message)?.[1] ?? `was not added: ${error.message}`;
  } catch {
    return "was not added: the server cannot be reached"; // or the response was not its JSON
  }
}

async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false; // a folder, or deleted meanwhile
  }
}

/**
 * Accept files that are dropped on the page.
 *
 * @param {() => boolean} mayDrop
 * @param {(files: File[]) => void} onFiles
 */
export function acceptDrops(mayDrop, onFiles) {
  const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // otherwise the browser leaves the page and shows the file
    if (mayDrop()) mark(true);
    else event.dataTransfer.dropEffect = "none";
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? mark(false));
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    if (mayDrop()) onFiles([...event.dataTransfer.files]);
  });
}
