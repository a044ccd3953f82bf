// The browser of sampled completions. Whatever a run wrote enters the page through textContent alone.
(() => {
  "use strict";
  const { appendVisible, box, element } = pacedrlTexts;
  const ROW = 46; // pixels, as in completions.css
  const SNIPPET = 240; // characters of a text from which its line in the list is made
  const MARKS = { right: "✓", wrong: "✗", between: "◐", none: "–", error: "!" };
  const LABELS = { right: "right", wrong: "wrong", between: "in between", none: "no verdict", error: "verifier failed" };

  const root = document.querySelector("#completions .cb");
  const form = root.querySelector("form");
  const fields = form.elements;
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const [list, space] = ["list", "space"].map(part);

  let info; // runs, shown, total, errors
  let rows; // columns, each with one value per row
  let lower; // texts of each row that the search reads, in lower case; made when first needed
  let view = []; // numbers of the rows that pass the filters, in order
  let current = -1; // the row whose details are shown

  // ---- Texts and figures ----

  const snippet = (text) => text.slice(0, SNIPPET).replace(/[\uD800-\uDBFF]$/, "").replace(/\s+/g, " ");
  const plain = (prompt) =>
    Array.isArray(prompt) ? prompt.map(([role, text]) => `${role}: ${text ?? ""}`).join("\n") : (prompt ?? "");
  const asked = (prompt) => (Array.isArray(prompt) ? (prompt.at(-1)?.[1] ?? "") : (prompt ?? ""));
  const figure = (value) => (value === null ? "–" : String(Number(value.toFixed(3))));
  const count = (value) => value.toLocaleString("en");

  // ---- Rows ----

  const text = (name, i) => rows.texts[rows[name][i]];
  const rewardKind = (i) => {
    const reward = rows.reward[i];
    return reward === null ? "none" : reward === 1 ? "right" : reward === 0 ? "wrong" : "between";
  };
  const failed = (i) => text("error", i) !== null;
  const outcome = (i) => (failed(i) ? "error" : rewardKind(i));
  const name = (i) => `${info.runs[rows.run[i]]}:${rows.n[i]}`;
  const find = (wanted) => {
    const colon = wanted.lastIndexOf(":");
    const run = info.runs.indexOf(wanted.slice(0, colon));
    const n = Number(wanted.slice(colon + 1));
    return rows.n.findIndex((line, i) => line === n && rows.run[i] === run);
  };

  async function unpack(data) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  async function load() {
    const next = JSON.parse(document.getElementById("completions-data").textContent);
    const unpacked = next.shown ? await unpack(next.gzip) : { n: [], texts: [] };
    const chosen = current < 0 ? null : name(current);
    const top = view.length && list.scrollTop > 0 ? name(view[Math.floor(list.scrollTop / ROW)]) : null;
    const offset = list.scrollTop % ROW;
    [info, rows, lower] = [next, unpacked, null];
    options("run", info.runs.map((run, i) => [i, run]));
    options("task", distinct("task"));
    options("finish", distinct("finish_reason"));
    part("run-field").hidden = info.runs.length < 2;
    note();
    filter();
    if (chosen !== null) {
      current = find(chosen);
      if (current < 0 && view.length) select(0);
    }
    const place = top === null ? -1 : view.indexOf(find(top));
    if (place >= 0) list.scrollTop = place * ROW + offset;
    draw();
  }

  function distinct(column) {
    return [...new Set(rows[column])].filter((i) => rows.texts[i] !== null).map((i) => [rows.texts[i], rows.texts[i]]);
  }

  function options(field, pairs) {
    const menu = fields[field];
    const chosen = menu.value;
    menu.replaceChildren(menu.options[0]);
    for (const [value, label] of pairs) {
      const option = element("option");
      option.value = value;
      appendVisible(option, snippet(label).slice(0, 80));
      menu.append(option);
    }
    menu.value = chosen;
    if (menu.selectedIndex < 0) menu.selectedIndex = 0;
  }

  function note() {
    const left = info.total - info.shown;
    const [errors, allErrors] = info.errors;
    part("note").hidden = !left;
    part("note").textContent = `This page holds ${count(info.shown)} of the ${count(info.total)} sampled completions: ${
      allErrors ? `${errors === allErrors ? "all" : `${count(errors)} of`} ${count(allErrors)} that the verifier failed on, and ` : ""
    }right and wrong ones spread over the steps. samples.jsonl in the run's folder has them all.`;
  }

  // ---- Filters ----

  const searched = () => fields.search.value.toLowerCase();

  function haystacks() {
    const shared = rows.texts.map((value) => plain(value).toLowerCase());
    return rows.n.map((_, i) => [
      shared[rows.prompt[i]],
      (rows.completion[i] ?? "").toLowerCase(),
      shared[rows.answer[i]],
    ]);
  }

  function inRange(column, field) {
    const [low, high] = [fields[`${field}-from`].value, fields[`${field}-to`].value];
    if (low === "" && high === "") return null;
    const [least, most] = [low === "" ? -Infinity : Number(low), high === "" ? Infinity : Number(high)];
    return (i) => rows[column][i] !== null && rows[column][i] >= least && rows[column][i] <= most;
  }

  function tests() {
    const { run, task, reward, error, finish, prompt } = fields;
    const wanted = prompt.value.toLowerCase();
    return [
      run.value !== "" && ((i) => rows.run[i] === Number(run.value)),
      task.value !== "" && ((i) => text("task", i) === task.value),
      reward.value !== "" && ((i) => rewardKind(i) === reward.value),
      error.value !== "" && ((i) => failed(i) === (error.value === "failed")),
      finish.value !== "" && ((i) => text("finish_reason", i) === finish.value),
      wanted !== "" && ((i) => (text("key", i) ?? "").startsWith(wanted) || (lower ??= haystacks())[i][0].includes(wanted)),
      inRange("step", "step"),
      inRange("accuracy_estimate", "estimate"),
    ].filter(Boolean);
  }

  const gap = (i) => {
    const [estimate, observed] = [rows.accuracy_estimate[i], rows.observed_accuracy[i]];
    return estimate === null || observed === null ? null : Math.abs(estimate - observed);
  };
  const ORDERS = {
    newest: [(i) => rows.step[i], -1],
    oldest: [(i) => rows.step[i], 1],
    "reward-low": [(i) => rows.reward[i], 1],
    "reward-high": [(i) => rows.reward[i], -1],
    "estimate-low": [(i) => rows.accuracy_estimate[i], 1],
    "estimate-high": [(i) => rows.accuracy_estimate[i], -1],
    gap: [gap, -1],
    longest: [(i) => (rows.completion[i] ?? "").length, -1],
  };

  // Rows without a value come last. Rows with equal values keep the order of the log.
  function sorted(places) {
    const [value, sign] = ORDERS[fields.sort.value];
    const key = places.map(value);
    const order = [...places.keys()].sort((a, b) => {
      if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null) || a - b;
      return sign * (key[a] - key[b]) || a - b;
    });
    return order.map((k) => places[k]);
  }

  function filter() {
    const all = tests();
    const wanted = searched();
    if (wanted) {
      lower ??= haystacks();
      all.push((i) => lower[i].some((part) => part.includes(wanted)));
    }
    view = sorted([...rows.n.keys()].filter((i) => all.every((test) => test(i))));
    const active = all.length - (wanted ? 1 : 0);
    part("active").textContent = active ? ` (${active} on)` : "";
    part("count").textContent = `${count(view.length)} of ${count(info.shown)} completions`;
    space.style.height = `${view.length * ROW}px`;
  }

  // Called when the reader changes a filter: shows the list from the top and keeps the chosen completion if it passes.
  function refilter() {
    filter();
    list.scrollTop = 0;
    const place = view.indexOf(current);
    if (place >= 0) reveal(place);
    else if (view.length) select(0);
    draw();
    details();
  }

  // ---- List ----

  function line(place) {
    const i = view[place];
    const kind = outcome(i);
    const made = element("div", `cb-row cb-${kind}`, "", {
      id: `cb-row-${i}`,
      role: "option",
      "aria-selected": i === current,
      "aria-setsize": view.length,
      "aria-posinset": place + 1,
      "data-place": place,
      "data-name": name(i),
    });
    made.style.top = `${place * ROW}px`;
    const completion = snippet(rows.completion[i] ?? "");
    made.append(
      element("span", "cb-mark", MARKS[kind], { role: "img", "aria-label": LABELS[kind] }),
      box("span", "cb-line cb-asked", snippet(asked(text("prompt", i)))),
      element("span", "cb-number", `step ${figure(rows.step[i])}`),
      completion.trim() ? box("span", "cb-line", completion) : element("span", "cb-line cb-asked", "(nothing)"),
      element("span", "cb-number", `est ${rows.accuracy_estimate[i]?.toFixed(2) ?? "–"}`),
    );
    return made;
  }

  function draw() {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 8, 0);
    const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 16, view.length);
    space.replaceChildren(...view.slice(first, last).map((_, k) => line(first + k)));
    const chosen = document.getElementById(`cb-row-${current}`);
    if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
    else list.removeAttribute("aria-activedescendant");
  }

  function reveal(place) {
    const [top, bottom] = [place * ROW, (place + 1) * ROW];
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  function select(place) {
    current = view[place];
    reveal(place);
    draw();
    details();
  }

  // Called when the reader chooses a completion: the address then names it.
  let naming;
  function choose(place) {
    if (!view.length) return;
    select(Math.max(0, Math.min(place, view.length - 1)));
    clearTimeout(naming); // browsers refuse frequent changes, as while a key is held down
    naming = setTimeout(() => history.replaceState(null, "", `#completion=${encodeURIComponent(name(current))}`), 200);
  }

  const step = (by) => choose(view.indexOf(current) + by);

  function follow() {
    const match = /^#completion=(.+)$/.exec(location.hash);
    if (!match) return false;
    let wanted = match[1];
    try {
      wanted = decodeURIComponent(wanted);
    } catch {
      // a name typed by hand that has a bare % in it
    }
    const found = find(wanted);
    if (found < 0) {
      part("count").replaceChildren(box("span", "", `Completion ${wanted} is not in this page; look in samples.jsonl.`));
    } else {
      if (!view.includes(found)) {
        form.reset();
        filter();
      }
      select(view.indexOf(found));
    }
    root.closest("section").scrollIntoView();
    return found >= 0;
  }

  // ---- Details ----

  function details() {
    const shown = view.includes(current);
    part("detail").hidden = !shown;
    if (!shown) return;
    const [i, kind, wanted] = [current, outcome(current), fields.search.value];
    part("badge").className = `cb-badge cb-${kind}`;
    part("badge").textContent = `${MARKS[kind]} ${LABELS[kind]}`;
    part("where").replaceChildren(
      ...(info.runs.length > 1 ? [box("b", "", info.runs[rows.run[i]])] : []),
      element("span", "cb-step", `step ${figure(rows.step[i])}`),
      box("span", "", text("task", i) ?? ""),
      box("span", "cb-key", text("key", i) ?? ""),
    );
    const prompt = text("prompt", i);
    const messages = Array.isArray(prompt) ? prompt : [[null, prompt]];
    part("prompt").replaceChildren(...messages.flatMap(([role, said]) => message(role, said ?? "", "Prompt", wanted)));
    part("completion").replaceChildren(...message(null, rows.completion[i] ?? "", "Completion", wanted));
    part("verdict").replaceChildren(...judgement(i, wanted));
  }

  function message(role, said, label, wanted) {
    const region = { tabindex: 0, role: "region", "aria-label": label };
    const shown = said
      ? box("div", "cb-box", said, wanted, region)
      : element("div", "cb-box cb-empty", "(nothing)", region);
    return role === null ? [shown] : [box("div", "cb-role", role), shown];
  }

  function judgement(i, wanted) {
    const term = (labels, ...values) => {
      const [pair, label, value] = ["div", "dt", "dd"].map((tag) => element(tag));
      label.append(...[labels].flat());
      value.append(...values);
      pair.append(label, value);
      return pair;
    };
    const [error, answer, finish] = [text("error", i), text("answer", i), text("finish_reason", i)];
    const [observed, estimate] = [rows.observed_accuracy[i], rows.accuracy_estimate[i]];
    const long = (value, className) => box("div", `cb-box ${className}`, value, wanted, { tabindex: 0 });
    return [
      term("Reward", figure(rows.reward[i])),
      ...Object.entries(rows.parts[i]).map(([label, value]) => term(box("span", "", `+ ${label}`), figure(value))),
      ...(error === null ? [] : [term("Error", long(error, "cb-error"))]),
      ...(answer === null ? [] : [term("Gold answer", long(answer, ""))]),
      term("Finish", finish === null ? "–" : box("span", "", finish === "length" ? "length (cut off)" : finish)),
      term("Length", `${count((rows.completion[i] ?? "").length)} characters`),
      term([element("i", "cb-estimate"), "Estimated accuracy"], figure(estimate)),
      term([element("i", "cb-observed"), "Observed accuracy"], figure(observed)),
      ...(estimate === null || observed === null ? [] : [scale(estimate, observed)]),
    ];
  }

  // A line from 0 to 1 with a ring at the estimate and a dot at the observed accuracy of the group.
  function scale(estimate, observed) {
    const made = element("div", "cb-scale", "", { "aria-hidden": true });
    for (const [className, value] of [["cb-estimate", estimate], ["cb-observed", observed]]) {
      const mark = element("i", className);
      mark.style.left = `${Math.max(0, Math.min(value, 1)) * 100}%`;
      made.append(mark);
    }
    return made;
  }

  // ---- Events ----

  let waiting;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(refilter, event.target.type === "search" || event.target.name === "prompt" ? 120 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refilter));
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(draw).observe(list);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".cb-row");
    if (row) choose(Number(row.dataset.place));
  });
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("help-open").addEventListener("click", () => part("help").showModal());
  part("same").addEventListener("click", () => {
    fields.prompt.value = text("key", current);
    refilter();
    list.focus();
  });

  list.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(list.clientHeight / ROW) - 1, 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -view.length, End: view.length };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(moves[event.key]);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || part("help").open) return;
    const field = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape" && form.contains(field)) {
      if (field === fields.search && field.value) {
        field.value = "";
        refilter();
      } else list.focus();
      event.preventDefault();
    }
    if (field || !["/", "?", "j", "k"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "/") {
      fields.search.focus();
      fields.search.select();
    } else if (event.key === "?") part("help").showModal();
    else {
      step(event.key === "j" ? 1 : -1);
      list.focus({ preventScroll: root.contains(document.activeElement) });
    }
  });

  window.addEventListener("hashchange", follow);
  // live.js sends this when it has replaced the rows.
  root.closest("section").addEventListener("completions-changed", load);

  if (root.clientWidth < 640) root.querySelector(".cb-more").open = false;
  load().then(() => {
    if (!follow() && view.length) select(0);
  });
})();
