// Texts of unknown origin, made to show what they are and do nothing: set by textContent alone, what cannot be seen as
// symbols, each in a box with a direction of its own.
const pacedrlTexts = (() => {
  "use strict";
  // What cannot be seen, or changes how its neighbours are shown; but for line ends, tabs, and U+FE0F after an emoji.
  const UNSEEN =
    /((?:(?![\n\t]|(?<=\p{Extended_Pictographic})\uFE0F)[\p{Cc}\p{Cs}\p{Default_Ignorable_Code_Point}\u2028\u2029\uFFF9-\uFFFB])+|(?<=\p{M}{6})\p{M}+)/gu;
  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");
  const MOST_MARKED = 4000; // pieces; of a letter that is everywhere nothing is marked

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
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

  // A text in a box of its own direction; occurrences of what is searched for are marked.
  function box(tag, className, text, wanted = "") {
    const made = element(tag, `cb-text ${className}`);
    made.dir = "auto";
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
