// All settings at once: an upright axis for each and for the metric, a line through them for each run.
const ALL = '*';

function drawParallel(node) {
  const runs = data.runs.filter(run => typeof run.value === 'number' && !run.partial && !view.hidden.has(run.index));
  $('scatter-note').textContent = 'Each line is a run; the last axis is the metric. Highlighted rows are in colour.';
  if (!runs.length) {
    node.replaceChildren(el('p', { class: 'muted' }, 'no run that is shown has a metric'));
    return;
  }
  const height = 340, width = Math.max(240, node.clientWidth), left = 40, right = width - 56;
  const told = data.columns.map((column, i) => ({ name: column.name, get: run => run.values[i] }));
  told.push({ name: data.metric, get: run => run.value });
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': `${runs.length} runs` });
  const axes = told.map(({ name, get }, i) => {
    const x = left + (right - left) * i / (told.length - 1), values = runs.map(get);
    const numeric = values.every(value => typeof value === 'number');
    const y = (numeric ? numericAxis : wordAxis)(values, height - 18, 34);
    picture.append(svg('line', { class: 'grid', x1: x, x2: x, y1: 28, y2: height - 12 }));
    label(picture, name, x, i, told.length, (right - left) / (told.length - 1));
    return { x, y, get };
  });
  picture.classList.toggle('crowd', runs.length > 200);
  picture.classList.toggle('few', runs.length <= 24);
  const strands = [...runs].reverse().map(run => strand(picture, run, axes));
  for (const { x, y } of axes) { // on top of the lines
    for (const tick of y.ticks) picture.append(svg('text', { class: 'tick', x: x + 5, y: y.place(tick) + 4 }, y.text(tick)));
  }
  picture.addEventListener('pointermove', event => nearestStrand(event, picture, strands));
  picture.addEventListener('pointerleave', () => { tip(null, null); hover([]); });
  picture.addEventListener('click', () => { if (view.hover.size) pick(sameRow(data.runs[[...view.hover][0]])); });
  node.replaceChildren(picture);
}

// Names of neighbours stand on two heights, each cut to the room that it has.
function label(picture, name, x, i, count, room) {
  const most = Math.max(6, Math.floor(room * 2 / 6.5) - 1);
  const text = name.length > most ? '…' + name.slice(1 - most) : name;
  const anchor = i === 0 ? 'start' : i === count - 1 ? 'end' : 'middle';
  const at = i === 0 ? 2 : i === count - 1 ? x + 54 : x;
  picture.append(svg('text', { x: at, y: i % 2 ? 22 : 10, 'text-anchor': anchor }, svg('title', {}, name), text));
}

function strand(picture, run, axes) {
  const points = axes.map(({ x, y, get }) => [x, y.place(get(run))]);
  const d = 'M' + points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join('L');
  const path = svg('path', { d, 'data-index': run.index, class: classesOf(run.index, 'strand') });
  picture.append(path);
  return { run, points };
}

function nearestStrand(event, picture, strands) {
  const bounds = picture.getBoundingClientRect();
  const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
  let best = null, least = 14;
  for (const one of strands) {
    const to = one.points.findIndex(point => point[0] >= x);
    if (to < 0) continue;
    const [a, b] = [one.points[Math.max(0, to - 1)], one.points[to]];
    const there = b[0] === a[0] ? a[1] : a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]);
    const distance = Math.abs(there - y);
    if (distance <= least) [best, least] = [one.run, distance];
  }
  tip(event, best && `${best.id}\n${told(best)}\n${data.metric} ${number(best.value)}`);
  const now = [...view.hover];
  if (best ? now.length !== 1 || now[0] !== best.index : now.length) hover(best ? [best.index] : []);
}
