// Shows texts of unknown origin safely: they are set through textContent, invisible characters appear as symbols, and
// each text has a box with its own writing direction.
const pacedrlTexts = (() => {
  "use strict";
  // Characters that are invisible or change how their neighbours look, except line ends, tabs, and U+FE0F after an emoji.
  const UNSEEN =
    /((?:(?![\n\t]|(?<=\p{Extended_Pictographic})\uFE0F)[\p{Cc}\p{Cs}\p{Default_Ignorable_Code_Point}\u2028\u2029\uFFF9-\uFFFB])+|(?<=\p{M}{6})\p{M}+)/gu;
  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");
  const MOST_MARKED = 4000; // pieces; a search that matches more often marks nothing

  function element(tag, className, text, attributes = {}) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function symbols(run) {
    if (/^\p{M}/u.test(run) && !/^\p{Default_Ignorable_Code_Point}/u.test(run)) return `+${[...run].length} marks`;
    const symbol = (character) => {
      const code = character.codePointAt(0);
      if (code < CONTROLS.length) return CONTROLS[code];
      return code === 0x7f ? "DEL" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    };
    return Array.from(run, symbol).join(" ");
  }

  function appendVisible(parent, text) {
    text.split(UNSEEN).forEach((piece, i) => {
      if (i % 2) parent.append(element("span", "cb-unseen", symbols(piece)));
      else if (piece) parent.append(piece);
    });
  }

  // Returns an element that holds a text in its own writing direction, with the matches of a search marked.
  function box(tag, className, text, wanted = "", attributes = {}) {
    const made = element(tag, `cb-text ${className}`, "", { dir: "auto", ...attributes });
    const pattern = wanted && new RegExp(`(${wanted.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")})`, "giu");
    const pieces = wanted ? text.split(pattern) : [text];
    (pieces.length > MOST_MARKED ? [text] : pieces).forEach((piece, i) => {
      const inside = i % 2 ? made.appendChild(element("mark")) : made;
      appendVisible(inside, piece);
    });
    return made;
  }

  return { appendVisible, box, element };
})();
