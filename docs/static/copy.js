"use strict";
// A button that copies code; of a terminal, the commands without what they print.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll("div.highlight")) {
    const pre = block.querySelector("pre");
    if (!pre || block.closest(".highlight-text")) continue;
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const lines = pre.textContent.trimEnd().split("\n");
      const commands = lines.filter((line, k) => line.startsWith("$ ") || (k && lines[k - 1].endsWith("\\")));
      const text = commands.length ? commands.map((line) => line.replace(/^\$ /, "")) : lines;
      await navigator.clipboard.writeText(text.join("\n") + "\n");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  }
});
