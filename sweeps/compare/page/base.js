// What the parts of the page share: the data, which runs are highlighted, hovered over and filtered, and small tools.
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const COLOURS = 8;
const BEST = 5;

// runs[i].setting: index of its setting, or null. A colour belongs to a setting; an unranked run is one of its own.
const keyOf = run => run.setting === null ? 'r' + run.index : 's' + run.setting;
data.runs.forEach((run, index) => { run.index = index; });

const view = { picked: new Map(), hover: new Set(), hidden: new Set(), listeners: [] };

function changed(what) { view.listeners.forEach(listener => listener(what)); }

function pick(runs) {
  const key = keyOf(runs[0]);
  const on = runs.some(run => view.picked.has(run.index));
  if (on) runs.forEach(run => view.picked.delete(run.index));
  else {
    const colour = colourFor(key);
    runs.forEach(run => view.picked.set(run.index, colour));
  }
  changed('picked');
}

function colourFor(key) {
  const taken = new Map();
  view.picked.forEach((colour, index) => taken.set(colour, keyOf(data.runs[index])));
  for (const [colour, owner] of taken) if (owner === key) return colour;
  for (let colour = 0; colour < COLOURS; colour++) if (!taken.has(colour)) return colour;
  return taken.size % COLOURS;
}

function hover(indices) {
  view.hover = new Set(indices);
  changed('hover');
}

function classesOf(index, base) {
  const colour = view.picked.get(index);
  return base + (colour === undefined ? '' : ` picked c${colour}`) + (view.hover.has(index) ? ' hover' : '');
}

// Text only ever reaches the page as text.
function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number') return String(value);
  return Number.isInteger(value) && Math.abs(value) < 1e9 ? String(value) : String(Number(value.toPrecision(5)));
}

function percent(share) {
  return share === null ? '?' : share > 0.995 ? '> 99 %' : `${Math.round(100 * share)} %`;
}

function told(run) {
  const settings = data.columns.map((column, i) => run.values[i] === undefined || run.values[i] === '–' ? null
    : `${column.name}=${number(run.values[i])}`);
  return settings.filter(text => text !== null).join('  ');
}

function tip(event, text) {
  const box = $('tip');
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8)) + 'px';
  box.style.top = (event.clientY + height + 24 > innerHeight ? event.clientY - height - 12 : event.clientY + 16) + 'px';
}

// An axis from values to pixels, with its ticks.
function axis(low, high, from, to, log) {
  if (log) {
    const [a, b] = [Math.log10(low), Math.log10(high)];
    const place = value => from + (to - from) * (b === a ? 0.5 : (Math.log10(value) - a) / (b - a));
    const steps = b - a > 2.5 ? [1] : [1, 2, 5];
    const ticks = [];
    for (let decade = Math.floor(a); decade <= Math.ceil(b); decade++) {
      for (const step of steps) {
        const tick = step * 10 ** decade;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      }
    }
    return { place, ticks: ticks.length > 1 ? ticks : [low, high] };
  }
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const rough = (high - low) / Math.max(3, Math.min(9, Math.abs(to - from) / 70));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(Number((i * step).toPrecision(12)));
  return { place: value => from + (to - from) * (value - low) / (high - low), ticks };
}

function frame(node, height, x, y, box, xName, yName, label) {
  const picture = svg('svg', { viewBox: `0 0 ${box.width} ${height}`, height, role: 'img', 'aria-label': label });
  for (const tick of y.ticks) {
    const at = y.place(tick);
    picture.append(svg('line', { class: 'grid', x1: box.left, x2: box.right, y1: at, y2: at }),
      svg('text', { x: box.left - 6, y: at + 4, 'text-anchor': 'end' }, number(tick)));
  }
  let free = -Infinity;
  for (const tick of x.ticks) {
    const text = (x.text || number)(tick);
    const half = text.length * 3.2, at = Math.min(x.place(tick), box.width - half - 2);
    if (at - half < free) continue;
    free = at + half + 6;
    picture.append(svg('text', { x: at, y: box.bottom + 16, 'text-anchor': 'middle' }, text));
  }
  picture.append(svg('text', { x: box.right, y: box.bottom + 32, 'text-anchor': 'end' }, xName),
    svg('text', { x: 2, y: 11 }, yName));
  node.replaceChildren(picture);
  return picture;
}
