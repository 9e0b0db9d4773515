// Masks: painted canvases, whose alpha is what counts, and COCO's run lengths. Part of canvas.js.

function run_lengths(mask) {
  const { width, height } = mask, pixels = pen_of(mask).getImageData(0, 0, width, height).data;
  const counts = [];
  let inside = 0, length = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const now = pixels[4 * (y * width + x) + 3] > 127 ? 1 : 0;
      if (now !== inside) {
        counts.push(length);
        length = 0;
        inside = now;
      }
      length++;
    }
  }
  counts.push(length);
  return { size: [height, width], counts };
}

function mask_of({ size: [height, width], counts }) {
  const mask = new_mask(width, height), data = new ImageData(width, height);
  let place = 0, inside = false;
  for (const count of counts) {
    if (inside) {
      for (let n = place; n < place + count; n++) data.data[4 * ((n % height) * width + Math.floor(n / height)) + 3] = 255;
    }
    place += count;
    inside = !inside;
  }
  pen_of(mask).putImageData(data, 0, 0);
  return mask;
}

const pen_of = (mask) => mask.getContext("2d", { willReadFrequently: true });

function new_mask(width, height) {
  const mask = document.createElement("canvas");
  [mask.width, mask.height] = [width, height];
  return mask;
}

// [x1, y1, x2, y2] of what is painted, in pixels of a picture of this width.
function rim_of(mask, picture_width) {
  const { size: [height, width], counts } = run_lengths(mask);
  let [x1, y1, x2, y2] = [width, height, 0, 0], place = 0;
  counts.forEach((count, n) => {
    if (n % 2 && count) {
      const [first, last] = [place, place + count - 1];
      x1 = Math.min(x1, Math.floor(first / height));
      x2 = Math.max(x2, Math.floor(last / height) + 1);
      const whole = Math.floor(first / height) !== Math.floor(last / height);
      y1 = Math.min(y1, whole ? 0 : first % height);
      y2 = Math.max(y2, whole ? height : (last % height) + 1);
    }
    place += count;
  });
  const factor = picture_width / width;
  return [x1 * factor, y1 * factor, x2 * factor, y2 * factor];
}

function tinted(mask, ink) {
  const sheet = new_mask(mask.width, mask.height), brush = pen_of(sheet);
  brush.drawImage(mask, 0, 0);
  brush.globalCompositeOperation = "source-in";
  brush.fillStyle = ink;
  brush.fillRect(0, 0, mask.width, mask.height);
  return sheet;
}
