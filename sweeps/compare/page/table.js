// The table: a row for each setting or each run; sorted by its headings, filtered by words.
const table = { rows: [], heads: [], sort: null };

function sameRow(run) {
  if ($('each').checked || run.setting === null) return [run];
  return data.runs.filter(other => other.setting === run.setting);
}

function headings() {
  const each = $('each').checked;
  const settings = data.columns.map((column, i) => ({ column, i })).filter(({ column }) => each || !column.seed);
  const states = data.runs.some(run => run.state !== 'COMPLETED');
  const sweeps = new Set(data.runs.map(run => run.sweep)).size > 1;
  const of = (name, get, kind = '') => ({ name, get, kind });
  return [
    of('#', row => row.setting && row.setting.rank, 'num'),
    of(data.metric, row => (each || !row.setting ? row.run.value : row.setting.mean), 'num value'),
    ...(each ? [of('mean', row => row.setting && row.setting.mean, 'num')] : []),
    of('±', row => row.setting && row.setting.spread && Number(row.setting.spread.toPrecision(2)), 'num'),
    of('n', row => row.setting && row.setting.n, 'num'),
    ...settings.map(({ column, i }) => ({ ...of(column.name, row => row.run.values[i]), key: column.key,
      kind: data.runs.every(run => typeof run.values[i] !== 'string' || run.values[i] === '–') ? 'num' : '' })),
    ...(states ? [of('state', row => row.run.state)] : []),
    ...(sweeps ? [of('sweep', row => row.run.sweep)] : []),
    of(each ? 'run' : 'best run', row => row.run.id, 'mono'),
  ];
}

function buildTable() {
  table.heads = headings();
  const each = $('each').checked;
  const groups = each ? data.runs.map(run => [run]) : [
    ...data.settings.map((_, i) => data.runs.filter(run => run.setting === i)),
    ...data.runs.filter(run => run.setting === null).map(run => [run]),
  ];
  table.rows = groups.map((runs, place) => {
    const row = { runs, run: runs[0], setting: runs[0].setting === null ? null : data.settings[runs[0].setting], place };
    row.cells = table.heads.map(head => head.get(row));
    row.text = table.heads.map((head, i) => `${head.name}=${number(row.cells[i])}`).join(' ').toLowerCase()
      + ' ' + runs.map(run => run.id).join(' ') + ' ' + row.run.problem.toLowerCase();
    row.node = tableRow(row);
    return row;
  });
  const head = el('tr', {}, el('th', { 'aria-label': 'highlight' }), ...table.heads.map((one, i) => {
    const button = el('button', { type: 'button', title: one.key || one.name }, one.name);
    button.addEventListener('click', () => sortBy(i));
    return el('th', { class: one.kind.includes('num') ? 'num' : '', scope: 'col', 'aria-sort': 'none' }, button);
  }));
  $('table').tHead.replaceChildren(head);
  table.sort = null;
  arrange();
}

function tableRow(row) {
  const cells = table.heads.map((head, i) => {
    const mark = head.kind.includes('value') && row.run.partial && row.cells[i] !== null ? '~' : '';
    return el('td', { class: head.kind }, mark + number(row.cells[i]));
  });
  const node = el('tr', { tabindex: '0', 'data-run': row.run.id }, el('td', {}, el('span', { class: 'swatch' })), ...cells);
  if (row.run.problem) node.title = row.run.problem;
  node.addEventListener('click', () => pick(row.runs));
  node.addEventListener('keydown', event => {
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(row.runs); }
    const next = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[event.key];
    if (!next) return;
    event.preventDefault();
    let other = node[next];
    while (other && other.hidden) other = other[next];
    if (other) other.focus();
  });
  for (const name of ['pointerenter', 'focus']) node.addEventListener(name, () => hover(row.runs.map(run => run.index)));
  for (const name of ['pointerleave', 'blur']) node.addEventListener(name, () => hover([]));
  return node;
}

function sortBy(i) {
  const again = table.sort && table.sort.i === i;
  const down = again ? !table.sort.down : i === 1 && data.larger;
  table.sort = { i, down };
  const empty = value => value === null || value === undefined || value === '–';
  const finite = value => typeof value === 'number';
  table.rows.sort((a, b) => {
    const [x, y] = [a.cells[i], b.cells[i]];
    if (empty(x) || empty(y)) return empty(x) - empty(y) || a.place - b.place;
    if (finite(x) !== finite(y)) return finite(x) ? -1 : 1; // a text among numbers: nan
    const order = finite(x) ? x - y : String(x).localeCompare(String(y));
    return (down ? -order : order) || a.place - b.place;
  });
  [...$('table').tHead.rows[0].cells].slice(1).forEach((cell, at) =>
    cell.setAttribute('aria-sort', at !== i ? 'none' : down ? 'descending' : 'ascending'));
  arrange();
}

function arrange() {
  $('table').tBodies[0].replaceChildren(...table.rows.map(row => row.node));
  applyFilter();
  paintTable();
}

function matches(row, words) {
  return words.every(word => {
    const parts = word.match(/^(.+?)(<=|>=|=|<|>)(.+)$/);
    const at = parts ? table.heads.findIndex(h => [h.name.toLowerCase(), (h.key || '').toLowerCase()].includes(parts[1])) : -1;
    if (at < 0) return row.text.includes(word);
    const [value, limit] = [row.cells[at], Number(parts[3])];
    if (parts[2] === '=') return String(value).toLowerCase() === parts[3] || (!Number.isNaN(limit) && value === limit);
    if (typeof value !== 'number') return false;
    return { '<': value < limit, '>': value > limit, '<=': value <= limit, '>=': value >= limit }[parts[2]];
  });
}

function applyFilter() {
  const words = $('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  view.hidden = new Set();
  let shown = 0;
  for (const row of table.rows) {
    row.node.hidden = !matches(row, words);
    shown += !row.node.hidden;
    if (row.node.hidden) row.runs.forEach(run => view.hidden.add(run.index));
  }
  $('count').textContent = `${shown === table.rows.length ? shown : `${shown} of ${table.rows.length}`} rows.`;
}

function paintTable() {
  for (const row of table.rows) {
    const colour = view.picked.get(row.run.index);
    const near = row.runs.some(run => view.hover.has(run.index));
    row.node.className = (colour === undefined ? '' : 'picked') + (near ? ' hover' : '');
    row.node.cells[0].firstChild.className = 'swatch' + (colour === undefined ? '' : ` on c${colour}`);
    row.node.setAttribute('aria-selected', String(colour !== undefined));
  }
}
