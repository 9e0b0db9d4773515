// A picture or clip opened, dropped, pasted or taken. Part of canvas.js.

async function open(blob, name) {
  const own = ++visit;
  stop_camera();
  say("Opening ...");
  try {
    const sent = await upload(blob instanceof File ? blob : new File([blob], name, { type: blob.type }));
    const path = sent.path, base = sent.url.slice(0, sent.url.indexOf("file=") + 5);
    const answer = await server.prepare({ path, name });
    if (own !== visit) return;
    if (answer.error) return say(answer.error, true);
    const image = await loaded(base + answer.shown);
    if (own !== visit) return;
    const { width, height, frames = 1, rate = null } = answer;
    picture = { path, name, base, image, width, height, frames, rate, frame: 0, home: 0 };
    regions = [];
    steps = [];
    chosen = -1;
    find(".dr-empty").hidden = true;
    canvas.hidden = find(".dr-tools").hidden = find(".dr-typed").hidden = false;
    find(".dr-frames").hidden = frames < 2;
    find(".dr-frames input").max = frames - 1;
    find(".dr-frames input").value = 0;
    say(`${name}, ${width} x ${height}${frames > 1 ? `, ${frames} frames` : ""}. Draw a box around an object.`);
    tell();
    fit();
  } catch (error) {
    if (own === visit) say(`${name}: it could not be opened; give a JPEG or PNG of at most ${props.max_file} MB`, true);
  }
}

async function loaded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

// Shows another frame of the clip. Of several that are asked for while one is on its way the last one follows.
let wanted = null;
async function to_frame(number) {
  const busy = wanted !== null;
  wanted = number;
  show();
  if (busy) return;
  try {
    while (wanted !== null && wanted !== picture.frame) {
      const own = picture, frame = wanted;
      const answer = await server.prepare({ path: own.path, name: own.name, frame });
      if (answer.error) throw new Error(answer.error);
      const image = await loaded(own.base + answer.shown);
      if (own !== picture) break;
      own.image = image;
      own.frame = frame;
      find(".dr-frames").dataset.shown = frame;
      if (!regions.length) own.home = frame;
      tell(true);
    }
  } catch (error) {
    say(error.message, true);
  }
  wanted = null;
  show();
}

find(".dr-frames input").addEventListener("input", (event) => to_frame(Number(event.target.value)));

const first_picture = (items) => [...items].find((item) => /^(image|video)\//.test(item.type));

function open_files(files) {
  if (files.length) open(first_picture(files) || files[0], (first_picture(files) || files[0]).name || "picture.png");
}

file.addEventListener("change", () => {
  open_files(file.files);
  file.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  stage.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("dr-over", kind === "dragover");
    if (kind === "drop") open_files(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  const typing = event.target.matches?.("input, textarea");
  if (element.isConnected && !typing && event.clipboardData?.files.length) {
    event.preventDefault();
    open_files(event.clipboardData.files);
  }
});

async function paste() {
  try {
    for (const item of await navigator.clipboard.read()) {
      const kind = item.types.find((type) => type.startsWith("image/"));
      if (kind) return open(await item.getType(kind), `pasted.${kind.slice(6)}`);
    }
    say("The clipboard holds no picture; copy one first", true);
  } catch {
    say("The browser does not show its clipboard; press Ctrl+V instead", true);
  }
}

async function start_camera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    return say("There is no camera, or the browser may not use it; open a file instead", true);
  }
  video.srcObject = stream;
  await video.play();
  video.hidden = find(".dr-shutter").hidden = false;
  canvas.hidden = find(".dr-empty").hidden = true;
  say("");
  find("[data-do=take]").focus();
}

function stop_camera() {
  for (const track of stream?.getTracks() || []) track.stop();
  stream = null;
  video.hidden = find(".dr-shutter").hidden = true;
  canvas.hidden = !picture;
  find(".dr-empty").hidden = !!picture;
}

function take() {
  const shot = new_mask(video.videoWidth, video.videoHeight);
  shot.getContext("2d").drawImage(video, 0, 0);
  shot.toBlob((blob) => open(blob, "camera.png"), "image/png");
}
