// The picture with its regions. Gradio runs masks.js, this and opening.js once, as the body of one function of
// element, trigger, props, server, upload and watch. props.value: {picture: {path, name, frame}, regions: [{box: [x1,
// y1, x2, y2]} | {mask: run lengths}]} in pixels of the upright picture, or of the clip's frame on which they are drawn;
// props.labels: a text a region, from Python, new when props.answered is; props.colours: one a region; props.clips:
// whether a model takes clips; props.max_file: MB of an upload.

const find = (selector) => element.querySelector(selector);
const stage = find(".dr-stage"), canvas = find("canvas"), video = find("video"), file = find("input[type=file]");
const pen = canvas.getContext("2d");
const MASK_SIDE = 1024; // pixels of a mask's longer side: larger ones are kept smaller and enlarged when they are read
const HANDLE = 9; // CSS pixels around a corner that take hold of it
const MOST_STEPS = 60;

let picture = null; // {path, name, image, width, height}, of a clip frames, rate, the frame shown, and that of the regions
let regions = []; // {box} or {mask: canvas}, each with a label
let chosen = -1, steps = [], drag = null, pointer = null, stream = null, visit = 0;

// --- the value ---

const written = (region) => (region.mask ? { mask: run_lengths(region.mask) } : { box: region.box.map((side) => Math.round(100 * side) / 100) });
const read = (record) => (record.mask ? { mask: mask_of(record.mask), label: "" } : { box: [...record.box], label: "" });

function tell(keep_labels = false) {
  if (!keep_labels) {
    for (const region of regions) region.label = "";
    mark_answers(true);
  }
  if (picture && !regions.length) picture.home = picture.frame;
  const sent = picture && { path: picture.path, name: picture.name, frame: picture.home };
  props.value = { picture: sent, regions: regions.map(written) };
  show();
}

// Answers are about the regions as they were: faint as soon as these are others.
function mark_answers(old) {
  for (const cards of document.querySelectorAll(".dr-card")) cards.classList.toggle("dr-old", old);
}

function remember() {
  steps.push(JSON.stringify(regions.map(written)));
  if (steps.length > MOST_STEPS) steps.shift();
}

function say(text, wrong = false) {
  find(".dr-note").textContent = text;
  find(".dr-note").classList.toggle("dr-wrong", wrong);
}

// --- showing ---

const scale = () => canvas.clientWidth / picture.width; // CSS pixels a pixel
const away = () => picture && picture.frame !== picture.home; // from the clip's frame on which the regions are
const colour = (index) => props.colours[index % props.colours.length];

function fit() {
  if (!picture || !canvas.clientWidth) return;
  const dense = window.devicePixelRatio || 1;
  canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  canvas.style.maxWidth = `calc(70vh * ${picture.width / picture.height})`;
  canvas.width = Math.round(canvas.clientWidth * dense);
  canvas.height = Math.round((canvas.width * picture.height) / picture.width);
  show();
}

function bounds(region) {
  return region.box || (region.rim ??= rim_of(region.mask, picture.width));
}

function paint() {
  if (!picture) return;
  const factor = canvas.width / picture.width, dense = canvas.width / canvas.clientWidth;
  pen.fillStyle = "white"; // what is transparent lies over white for the model, too
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  if (away()) return;
  regions.forEach((region, index) => {
    if (!region.mask) return;
    pen.globalAlpha = 0.55;
    pen.drawImage(tinted(region.mask, colour(index)), 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
  });
  regions.forEach((region, index) => {
    const [x1, y1, x2, y2] = bounds(region).map((side) => side * factor);
    if (region.box) {
      for (const [ink, width] of [["white", 5], [colour(index), 2.5 + (index === chosen ? 1 : 0)]]) {
        pen.strokeStyle = ink;
        pen.lineWidth = width * dense;
        pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
    if (region.box && index === chosen) {
      for (const [x, y] of [[x1, y1], [x2, y1], [x1, y2], [x2, y2]]) {
        pen.beginPath();
        pen.arc(x, y, 5 * dense, 0, 7);
        pen.fillStyle = "white";
        pen.fill();
        pen.strokeStyle = colour(index);
        pen.lineWidth = 2 * dense;
        pen.stroke();
      }
    }
  });
  regions.forEach((region, index) => chip(region, index, factor, dense)); // above all boxes
  if (pointer && tool() !== "box") {
    pen.beginPath();
    pen.arc(pointer[0] * factor, pointer[1] * factor, brush_size() * factor / 2, 0, 7);
    pen.strokeStyle = "white";
    pen.lineWidth = 3 * dense;
    pen.stroke();
    pen.strokeStyle = "black";
    pen.lineWidth = dense;
    pen.stroke();
  }
}

function chip(region, index, factor, dense) {
  const [x1, y1, , y2] = bounds(region).map((side) => side * factor), text = region.label ? `${index}  ${region.label}` : `${index}`;
  pen.font = `600 ${13 * dense}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + 12 * dense, height = 20 * dense;
  const x = Math.max(0, Math.min(x1 - 2 * dense, canvas.width - width));
  const y = y1 - height - 2 * dense >= 0 ? y1 - height - 2 * dense : Math.min(y2 + 2 * dense, canvas.height - height);
  pen.fillStyle = colour(index);
  pen.strokeStyle = "white";
  pen.lineWidth = 1.5 * dense;
  pen.beginPath();
  pen.roundRect(x, y, width, height, 5 * dense);
  pen.fill();
  pen.stroke();
  pen.fillStyle = "white";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 6 * dense, y + height / 2 + dense / 2);
}

function show() {
  paint();
  const list = find(".dr-list");
  list.replaceChildren(
    ...regions.map((region, index) => {
      const row = document.createElement("li"), pick = document.createElement("button"), drop = document.createElement("button");
      const [x1, y1, x2, y2] = bounds(region).map(Math.round);
      pick.type = drop.type = "button";
      pick.dataset.pick = drop.dataset.drop = index;
      pick.setAttribute("aria-pressed", index === chosen);
      const mark = document.createElement("span");
      mark.className = "dr-mark";
      mark.style.background = colour(index);
      mark.textContent = index;
      pick.append(mark, `${region.mask ? "mask" : "box"} ${x1}, ${y1}, ${x2}, ${y2}`);
      drop.textContent = "×";
      drop.setAttribute("aria-label", `Remove region ${index}`);
      row.append(pick, drop);
      return row;
    }),
  );
  if (picture?.frames > 1) {
    const number = wanted ?? picture.frame, time = picture.rate ? `, ${(number / picture.rate).toFixed(2)} s` : "";
    find(".dr-frames output").textContent = `${number} of ${picture.frames - 1}${time}`;
    find("[data-do=home]").hidden = !away();
    find("[data-do=home]").textContent = `To the regions, ${picture.home}`;
  }
  find("[data-do=undo]").disabled = !steps.length;
  find("[data-do=clear]").disabled = !regions.length;
}

// --- drawing ---

const tool = () => find("input[name=dr-tool]:checked").value;
const brush_size = () => (find(".dr-size input").value * Math.max(picture.width, picture.height)) / 640;
const clamp = (value, most) => Math.max(0, Math.min(value, most));

function place(event) {
  const rim = canvas.getBoundingClientRect();
  return [
    clamp(((event.clientX - rim.left) * picture.width) / rim.width, picture.width),
    clamp(((event.clientY - rim.top) * picture.height) / rim.height, picture.height),
  ];
}

const ordered = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

function corner_at([x, y]) {
  const box = regions[chosen]?.box, reach = HANDLE / scale();
  if (!box) return null;
  for (const [across, down] of [[0, 1], [2, 1], [0, 3], [2, 3]]) {
    if (Math.hypot(box[across] - x, box[down] - y) <= reach) return [box[2 - across], box[4 - down]]; // the other corner
  }
  return null;
}

function region_at([x, y]) {
  for (let index = regions.length - 1; index >= 0; index--) {
    const [x1, y1, x2, y2] = bounds(regions[index]);
    if (x >= x1 && x <= x2 && y >= y1 && y <= y2) return index;
  }
  return -1;
}

function stroke(from, to) {
  const mask = regions[chosen].mask, brush = pen_of(mask), factor = mask.width / picture.width;
  brush.globalCompositeOperation = tool() === "eraser" ? "destination-out" : "source-over";
  brush.lineCap = brush.lineJoin = "round";
  brush.lineWidth = Math.max(1, brush_size() * factor);
  brush.beginPath();
  brush.moveTo(from[0] * factor, from[1] * factor);
  brush.lineTo(to[0] * factor, to[1] * factor + 0.01);
  brush.stroke();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!picture || event.button) return;
  event.preventDefault();
  stage.focus({ preventScroll: true });
  if (away()) return say(`The regions are on frame ${picture.home}; go there, or clear them to draw on this one`, true);
  canvas.setPointerCapture(event.pointerId);
  const at = place(event);
  if (tool() === "box") {
    const across = corner_at(at);
    if (across) remember();
    drag = across ? { start: across, index: chosen, moved: true } : { start: at, index: -1, moved: false };
  } else {
    if (!regions[chosen]?.mask) {
      if (tool() === "eraser") return say("Choose a mask in the list below, then take paint away", true);
      remember();
      const factor = Math.min(1, MASK_SIDE / Math.max(picture.width, picture.height));
      const size = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * factor)));
      regions.push({ mask: new_mask(...size), label: "" });
      chosen = regions.length - 1;
    } else {
      remember();
    }
    drag = { last: at };
    stroke(at, at);
  }
  paint();
});

canvas.addEventListener("pointermove", (event) => {
  if (!picture) return;
  const at = (pointer = place(event));
  if (drag?.last) {
    stroke(drag.last, at);
    drag.last = at;
  } else if (drag) {
    const far = Math.hypot(at[0] - drag.start[0], at[1] - drag.start[1]) * scale() > 4;
    if (far && drag.index < 0) {
      remember();
      regions.push({ box: ordered(drag.start, at), label: "" });
      chosen = drag.index = regions.length - 1;
    }
    if (drag.index >= 0) regions[drag.index].box = ordered(drag.start, at);
    drag.moved = drag.moved || far;
  }
  if (tool() === "box") canvas.style.cursor = corner_at(at) ? "nwse-resize" : "crosshair";
  if (drag || tool() !== "box") paint();
});

function finish() {
  if (!drag) return;
  if (drag.last) {
    regions[chosen].rim = null; // as long as a stroke lasts it is that of before
    if (run_lengths(regions[chosen].mask).counts.length < 2) remove(chosen, false);
    tell();
  } else if (!drag.moved) {
    chosen = region_at(drag.start);
    show();
  } else {
    const [x1, y1, x2, y2] = regions[drag.index].box;
    if (x2 - x1 < 1 || y2 - y1 < 1) regions.splice(drag.index, 1);
    else say("");
    tell();
  }
  drag = null;
}
canvas.addEventListener("pointerup", finish);
canvas.addEventListener("pointercancel", finish);
canvas.addEventListener("pointerleave", () => {
  pointer = null;
  if (!drag) paint();
});

function remove(index, undoable = true) {
  if (undoable) remember();
  regions.splice(index, 1);
  chosen = Math.min(chosen > index ? chosen - 1 : chosen, regions.length - 1);
}

// --- buttons and keys ---

const deeds = {
  open: () => file.click(),
  paste,
  camera: start_camera,
  take,
  stop: stop_camera,
  home: () => {
    find(".dr-frames input").value = picture.home;
    to_frame(picture.home);
  },
  next: () => {
    chosen = -1;
    show();
  },
  undo: () => {
    regions = JSON.parse(steps.pop()).map(read);
    chosen = Math.min(chosen, regions.length - 1);
    tell();
  },
  clear: () => {
    remember();
    regions = [];
    chosen = -1;
    tell();
  },
};

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.do) deeds[button.dataset.do]();
  if (button.dataset.pick) {
    chosen = Number(button.dataset.pick);
    show();
    find(`[data-pick="${chosen}"]`).focus();
  }
  if (button.dataset.drop) {
    remove(Number(button.dataset.drop));
    tell();
    (find("[data-drop]") || stage).focus();
  }
});

element.addEventListener("change", (event) => {
  if (event.target.name !== "dr-tool") return;
  const painting = tool() !== "box";
  find(".dr-size").hidden = !painting;
  find("[data-do=next]").hidden = tool() !== "brush";
  canvas.style.cursor = "crosshair";
  paint();
});

find(".dr-typed").addEventListener("submit", (event) => {
  event.preventDefault();
  if (away()) return say(`The regions are on frame ${picture.home}; go there, or clear them to draw on this one`, true);
  const fields = [...event.target.querySelectorAll("input")];
  const box = fields.map((field) => (field.value.trim() ? Number(field.value.trim().replace(",", ".")) : NaN));
  const wrong = box.findIndex((side) => !Number.isFinite(side));
  if (wrong >= 0) {
    say(`${fields[wrong].name}: "${fields[wrong].value}" is no number; give four, in pixels`, true);
    return fields[wrong].focus();
  }
  const [x1, y1, x2, y2] = box;
  const clipped = [clamp(x1, picture.width), clamp(y1, picture.height), clamp(x2, picture.width), clamp(y2, picture.height)];
  if (x1 >= x2 || y1 >= y2) return say(`Box ${box.join(", ")}: expected x1 < x2 and y1 < y2`, true);
  if (clipped[0] >= clipped[2] || clipped[1] >= clipped[3]) {
    return say(`Box ${box.join(", ")} lies outside the picture of ${picture.width} x ${picture.height}`, true);
  }
  remember();
  regions.push({ box: clipped, label: "" });
  chosen = regions.length - 1;
  for (const field of fields) field.value = "";
  fields[0].focus();
  say(`Region ${chosen} added`);
  tell();
});

stage.addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const region = regions[chosen];
  if (event.target !== stage || !picture) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && steps.length) {
    event.preventDefault();
    deeds.undo();
  } else if (region && (event.key === "Delete" || event.key === "Backspace")) {
    event.preventDefault();
    remove(chosen);
    tell();
  } else if (region?.box && ways[event.key]) {
    event.preventDefault();
    remember();
    const step = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 200)), box = region.box;
    const [dx, dy] = ways[event.key].map((way) => way * step);
    if (event.shiftKey) {
      box[2] = Math.min(Math.max(box[2] + dx, box[0] + 1), picture.width);
      box[3] = Math.min(Math.max(box[3] + dy, box[1] + 1), picture.height);
    } else {
      const right = clamp(box[0] + dx, picture.width - (box[2] - box[0])) - box[0];
      const down = clamp(box[1] + dy, picture.height - (box[3] - box[1])) - box[1];
      region.box = [box[0] + right, box[1] + down, box[2] + right, box[3] + down];
    }
    tell();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && element.isConnected) {
    event.preventDefault();
    document.querySelector("#dr-describe")?.click();
  }
});

watch("answered", () => {
  mark_answers(false);
  const cards = document.querySelector(".dr-cards"); // on a phone they are further down
  if (cards?.getBoundingClientRect().top > window.innerHeight - 100) cards.scrollIntoView({ behavior: "smooth" });
  regions.forEach((region, index) => {
    region.label = props.labels[index] || "";
  });
  show();
});

file.accept = props.clips ? "image/*,video/*" : "image/*";
new ResizeObserver(fit).observe(stage);
show();
