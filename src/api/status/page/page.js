'use strict';

// How long requests/s and failures/s are remembered, and how long an answer may take; milliseconds.
const REMEMBERED = 120_000;
const PATIENCE = 10_000;

const SIGNS = { up: '▲', down: '▼', draining: '◆' };

const $ = id => document.getElementById(id);

// ---- Texts

const NUMBER_UNITS = ['', ' k', ' M', ' G', ' T', ' P', ' E'];
const BYTE_UNITS = [' B', ' KiB', ' MiB', ' GiB', ' TiB', ' PiB', ' EiB'];

function scaled(number, step, units, whole) {
  let unit = 0;
  while (number >= (unit ? step : whole) && unit < units.length - 1) {
    number /= step;
    unit++;
  }
  return (unit && number < 100 ? number.toFixed(1) : String(Math.round(number))) + units[unit];
}

const count = number => scaled(number, 1000, NUMBER_UNITS, 100_000);

const bytes = number => scaled(number, 1024, BYTE_UNITS, 1024);

function rate(number) {
  return number > 0 && number < 9.95 ? number.toFixed(1) : count(Math.round(number));
}

function span(milliseconds) {
  const seconds = milliseconds / 1000;
  if (milliseconds < 1) return '< 1 ms';
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (seconds < 120) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

function ago(moment, now) {
  const age = now - Date.parse(moment);
  return age < 1000 ? 'just now' : `${span(Math.floor(age / 1000) * 1000)} ago`;
}

const plural = (number, word) => `${number} ${word}${number === 1 ? '' : 's'}`;

// ---- The document: copies of templates, of which only what changes is touched

function copyOf(template) {
  const root = $(template).content.firstElementChild.cloneNode(true);
  const cells = {};
  for (const element of root.querySelectorAll('[data-cell]')) {
    cells[element.dataset.cell] = { element, text: '' };
  }
  return { root, cells, marks: {} };
}

function put(item, name, text) {
  const cell = item.cells[name];
  if (cell.text === text) return;
  cell.text = text;
  cell.element.textContent = text;
}

function mark(item, name, value) {
  if (item.marks[name] === value) return;
  item.marks[name] = value;
  item.root.dataset[name] = value;
}

function hide(item, hidden) {
  if (item.hidden === hidden) return;
  item.hidden = hidden;
  item.root.hidden = hidden;
}

// Makes the children of a parent those of the items, in their order; what stays is not moved.
function arrange(parent, items) {
  let next = parent.firstElementChild;
  for (const { root } of items) {
    if (root === next) next = next.nextElementSibling;
    else parent.insertBefore(root, next);
  }
}

// Finds the item of each name, or makes it, and removes those whose name is gone. Names that hold
// bytes which are no text may look alike; their places tell them apart.
function keep(known, names, make) {
  const gone = new Set(known.keys());
  const times = new Map();
  const items = names.map(name => {
    const time = times.get(name) ?? 0;
    times.set(name, time + 1);
    const key = `${time} ${name}`;
    gone.delete(key);
    if (!known.has(key)) known.set(key, make(name));
    return known.get(key);
  });
  for (const key of gone) {
    known.get(key).root.remove();
    known.delete(key);
  }
  return items;
}

// Facts are [name, value, whether it alarms].
function putFacts(list, known, facts) {
  const items = keep(known, facts.map(([name]) => name), () => copyOf('fact'));
  items.forEach((item, place) => {
    const [name, value, alarms] = facts[place];
    put(item, 'name', name);
    put(item, 'value', alarms ? `⚠ ${value}` : value);
    mark(item, 'alarm', alarms ? 'yes' : 'no');
  });
  arrange(list, items);
}

// ---- Requests/s and failures/s

class Rates {
  samples = [];
  latest = null;

  // Counters at a moment. One that fell has begun anew.
  count(at, requests, failures) {
    const before = this.before;
    if (before && at === before.at) return;
    this.before = { at, requests, failures };
    if (!before || at < before.at || requests < before.requests || failures < before.failures) {
      this.latest = null;
      return;
    }
    const seconds = (at - before.at) / 1000;
    this.add(at, (requests - before.requests) / seconds, (failures - before.failures) / seconds);
  }

  add(at, requests, failures) {
    this.latest = { at, requests, failures };
    this.samples = this.samples.filter(sample => sample.at > at - REMEMBERED && sample.at < at);
    this.samples.push(this.latest);
  }

  get highest() {
    return this.samples.reduce((highest, { requests }) => Math.max(highest, requests), 0);
  }
}

function draw(svg, { samples }, scale, now) {
  const x = at => (120 - (now - at) / REMEMBERED * 120).toFixed(1);
  const y = value => (23 - value / Math.max(scale, 1) * 21).toFixed(1);
  const [area, line, bars] = svg.children;
  const points = samples.map(sample => `${x(sample.at)},${y(sample.requests)}`).join(' ');
  line.setAttribute('points', points);
  const last = samples.at(-1);
  area.setAttribute('points', last ? `${x(samples[0].at)},24 ${points} ${x(last.at)},24` : '');
  // However few failures there are, they are seen.
  const failed = samples.filter(sample => sample.failures > 0);
  bars.setAttribute('d', failed.map(sample => {
    return `M${x(sample.at)},24V${Math.max(0, Math.min(y(sample.failures), 17))}`;
  }).join(''));
}

function putRate(item) {
  const { requests, failures } = item.rates.latest ?? { failures: 0 };
  put(item, 'rate', requests === undefined ? '–' : rate(requests));
  put(item, 'failing', failures > 0 ? `${rate(failures)} failed` : '');
}

// Histories are drawn where they are seen.
const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    const item = drawn.get(target);
    item.seen = isIntersecting;
    if (isIntersecting) drawHistory(item);
  }
}, { rootMargin: '200px' });
const drawn = new WeakMap();

function drawHistory(item) {
  if (item.seen) draw(item.svg, item.rates, item.scale, item.now);
}

function withHistory(item) {
  item.rates = new Rates();
  item.svg = item.root.querySelector('svg');
  drawn.set(item.root, item);
  seen.observe(item.root);
  return item;
}

// ---- One server

function reason(word, server, check) {
  switch (word) {
    case 'down': return 'operator: down';
    case 'drain': return 'operator: drain';
    case 'weight': return 'weight 0';
    case 'consul': return 'Consul: critical';
    case 'check': return `check: ${verdict(server.check, check)}`;
    case 'max_fails': return `max_fails: ${server.fails} of ${server.max_fails}`;
    case 'max_conns': return `max_conns: ${server.connections} of ${server.max_conns}`;
    default: return word;
  }
}

function verdict(checked, check) {
  if (!checked?.last) return 'none yet';
  if (checked.last.result === 'ok') return `passed ${checked.rise} of ${check?.rise ?? '?'}`;
  return checked.last.result;
}

function reasons(server, check) {
  const all = server.out.map(word => reason(word, server, check));
  if (server.check && !server.check.up && !server.out.includes('check')) {
    all.push(`check: ${verdict(server.check, check)}, ignored`);
  }
  return all.join('\n');
}

function parameters(server) {
  const all = [`weight=${server.weight}`];
  if (server.max_conns) all.push(`max_conns=${server.max_conns}`);
  all.push(`max_fails=${server.max_fails}`, `fail_timeout=${server.fail_timeout}s`);
  if (server.slow_start) all.push(`slow_start=${server.slow_start}s`);
  if (server.backup) all.push('backup');
  // The member `down` says Consul's as well.
  if (server.out.includes('down')) all.push('down');
  if (server.drain) all.push('drain');
  return all.join(' ');
}

function failures(server) {
  if (!server.failures) return 'none failed';
  const share = 100 * server.failures / server.requests;
  const percent = share < 0.1 ? '< 0.1' : share.toFixed(share < 10 ? 1 : 0);
  return `${count(server.failures)} failed, ${percent} %`;
}

function putCheck(row, server, now) {
  const { check } = server;
  const last = check?.last;
  mark(row, 'checked', !check ? 'none' : !last ? 'never' : last.result === 'ok' ? 'ok' : 'failed');
  if (!last) {
    put(row, 'checked', check ? 'not yet' : '–');
    put(row, 'check', check ? `taken as ${check.up ? 'up' : 'down'}` : '');
    return;
  }
  const isGood = last.result === 'ok';
  put(row, 'checked', `${isGood ? '✔' : '✖'} ${last.result}`);
  const port = check.port ? `port ${check.port}, ` : '';
  const streak = isGood ? `${count(check.rise)} good` : `${count(check.fall)} failed`;
  put(row, 'check', `${port}${ago(last.at, now)}, took ${span(last.took_ms)}, ${streak}`);
}

function putCounters(row, server) {
  put(row, 'connections', count(server.connections));
  put(row, 'limit', server.max_conns ? `of ${server.max_conns}` : '');
  put(row, 'requests', count(server.requests));
  put(row, 'failures', failures(server));
  for (const code of ['1xx', '2xx', '3xx', '4xx', '5xx']) {
    put(row, code, count(server.responses[code]));
  }
  mark(row, 'failures', server.failures ? 'some' : 'none');
  mark(row, 'errors', server.responses['5xx'] ? 'some' : 'none');
  put(row, 'sent', bytes(server.sent));
  put(row, 'received', bytes(server.received));
  put(row, 'header', server.header_time_ms === null ? '–' : span(server.header_time_ms));
  put(row, 'response', server.response_time_ms === null ? '–' : span(server.response_time_ms));
}

function putServer(row, server, check, now) {
  mark(row, 'state', server.state);
  mark(row, 'out', server.out.join(' '));
  put(row, 'sign', SIGNS[server.state] ?? '●');
  put(row, 'state', server.state);
  put(row, 'reasons', reasons(server, check));
  put(row, 'parameters', parameters(server));
  putCounters(row, server);
  putCheck(row, server, now);
  row.rates.count(now, server.requests, server.failures);
  putRate(row);
}

function makeRow(upstream, server) {
  const row = withHistory(copyOf('server'));
  row.searched = `${upstream} ${server}`.toLowerCase();
  mark(row, 'server', server);
  put(row, 'address', server);
  return row;
}

// ---- One upstream

function versions(upstream, workers) {
  const { version } = upstream;
  if (upstream.workers.every(used => used === null || used === version)) return [];
  const each = upstream.workers.map((used, place) => {
    return `worker ${workers[place]?.number ?? place} ${used === null ? 'none yet' : used}`;
  });
  return [['Last request by version', each.join(', '), false]];
}

function followed(follow, now) {
  if (!follow) return [];
  const { url, index, answered, failed, failing, applied, refused } = follow;
  const facts = [
    ['Follows', url, false],
    ['Answers', `${answered ? `${ago(answered, now)}, ` : 'none yet, '}index ${index}`, !answered],
    ['Changes', `${applied} applied, ${refused} refused`, false],
  ];
  if (failed) {
    facts.push([failing ? 'Fails' : 'Last error', `${failed.reason}, ${ago(failed.at, now)}`, failing]);
  }
  return facts;
}

function checkedBy(check) {
  if (!check) return [];
  const { type, interval_ms: interval, rise, fall, fail_open: share, open } = check;
  const limit = share < 100 ? `, fail open over ${share} %` : '';
  const text = `${type} every ${span(interval)}, rise ${rise}, fall ${fall}${limit}`;
  const facts = [['Check', text, false]];
  if (open) facts.push(['Fail open', `more than ${share} % would be out: verdicts are ignored`, true]);
  return facts;
}

function upstreamFacts(upstream, workers, now) {
  const { source, method, version, since, keepalive } = upstream;
  return [
    ['Source', source, false],
    ...(method ? [['Method', method, false]] : []),
    ['Version', `${version}, ${ago(since, now)}`, false],
    ...versions(upstream, workers),
    ...(keepalive === null ? [] : [['Keepalive', String(keepalive), false]]),
    ...followed(upstream.follow, now),
    ...checkedBy(upstream.check),
  ];
}

const upstreams = new Map();
let made = 0;

function makeBlock(name) {
  const block = withHistory(copyOf('upstream'));
  Object.assign(block, { name, servers: new Map(), facts: new Map(), searched: name.toLowerCase() });
  block.list = block.root.querySelector('dl');
  block.table = block.root.querySelector('table');
  block.body = block.root.querySelector('tbody');
  const title = block.cells.name.element;
  title.id = `upstream-${++made}`;
  block.root.setAttribute('aria-labelledby', title.id);
  block.table.setAttribute('aria-labelledby', title.id);
  mark(block, 'upstream', name);
  put(block, 'name', name || '(no name)');
  return block;
}

function putHistories(block, now) {
  const latest = block.rows.map(row => row.rates.latest).filter(each => each?.at === now);
  const sum = of => latest.reduce((total, each) => total + each[of], 0);
  if (latest.length) block.rates.add(now, sum('requests'), sum('failures'));
  putRate(block);
  const scale = block.rows.reduce((highest, row) => Math.max(highest, row.rates.highest), 0);
  for (const row of block.rows) {
    Object.assign(row, { scale, now });
    drawHistory(row);
  }
  Object.assign(block, { scale: block.rates.highest, now });
  drawHistory(block);
}

function putUpstream(block, upstream, workers, now) {
  const { servers, check } = upstream;
  const addresses = servers.map(({ server }) => server);
  block.rows = keep(block.servers, addresses, address => makeRow(block.name, address));
  servers.forEach((server, place) => putServer(block.rows[place], server, check, now));
  arrange(block.body, block.rows);
  putFacts(block.list, block.facts, upstreamFacts(upstream, workers, now));
  const up = servers.filter(server => server.state === 'up').length;
  put(block, 'count', servers.length ? `${up} of ${servers.length} up` : 'no servers');
  mark(block, 'up', !servers.length || up === servers.length ? 'all' : up ? 'some' : 'none');
  mark(block, 'check', check ? 'yes' : 'no');
  block.table.hidden = !servers.length;
  putHistories(block, now);
}

// ---- All of it

function aboutFacts(status, now) {
  const { module, nginx, generation, since, pages, workers } = status;
  const used = pages.total - pages.free;
  const share = pages.total ? Math.round(100 * used / pages.total) : 0;
  const pids = workers.map(({ pid }) => pid || 'none').join(', ');
  return [
    ['Module', module, false],
    ['nginx', nginx, false],
    ['Configuration', `number ${generation}, ${ago(since, now)}`, false],
    ['Workers', `${workers.length} (pid ${pids})`, workers.some(({ pid }) => !pid)],
    ['Zone', `${used} of ${pages.total} pages used, ${share} %`, share >= 90],
  ];
}

const about = new Map();
let blocks = [];

function show(status) {
  performance.mark('show');
  const now = Date.parse(status.now);
  putFacts($('about'), about, aboutFacts(status, now));
  blocks = keep(upstreams, status.upstreams.map(({ name }) => name), makeBlock);
  status.upstreams.forEach((upstream, place) => {
    putUpstream(blocks[place], upstream, status.workers, now);
  });
  arrange($('upstreams'), blocks);
  putFilter();
  performance.clearMeasures('show');
  performance.measure('show', 'show');
}

// ---- The filter, and what the address of the page says of it

const wanted = { words: [], onlyOut: false, every: 2 };

function isWanted(item, isOut) {
  return (isOut || !wanted.onlyOut) && wanted.words.every(word => item.searched.includes(word));
}

function filterBlock(block) {
  let shown = 0;
  for (const row of block.rows) {
    const isShown = isWanted(row, row.marks.state !== 'up');
    hide(row, !isShown);
    shown += isShown;
  }
  hide(block, !shown && (block.rows.length > 0 || !isWanted(block, false)));
  return shown;
}

function putFilter() {
  const shown = blocks.reduce((sum, block) => sum + filterBlock(block), 0);
  const rows = blocks.flatMap(block => block.rows);
  const states = new Map([['up', 0], ['down', 0]]);
  for (const { marks } of rows) states.set(marks.state, (states.get(marks.state) ?? 0) + 1);
  const each = [...states].map(([state, number]) => `${number} ${state}`).join(', ');
  const isFiltered = wanted.words.length || wanted.onlyOut;
  const part = isFiltered ? `; ${shown} shown` : '';
  summary = `${plural(rows.length, 'server')}: ${each}${part}`;
  const out = rows.length - states.get('up');
  document.title = out ? `${out} out – Upstreams` : 'Upstreams';
  $('nothing').hidden = blocks.some(block => !block.hidden);
  $('nothing').textContent = isFiltered ? 'Nothing matches the filter.' : 'There are no upstreams.';
}

function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const every = said.get('every') ?? '2';
  $('filter').value = said.get('filter') ?? '';
  $('only-out').checked = said.has('out');
  $('every').value = every;
  if (!$('every').value) $('every').value = '2';
}

function writeAddress() {
  const said = new URLSearchParams();
  if ($('filter').value) said.set('filter', $('filter').value);
  if ($('only-out').checked) said.set('out', '1');
  if ($('every').value !== '2') said.set('every', $('every').value);
  const hash = String(said);
  history.replaceState(null, '', hash ? `#${hash}` : location.pathname + location.search);
}

function readControls() {
  wanted.words = $('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  wanted.onlyOut = $('only-out').checked;
  wanted.every = Number($('every').value);
  if (!answered) return;
  putFilter();
  putStatus();
}

// ---- Answers, one at a time

let summary = '';
let answered = null;
let failed = '';
let asking = false;
let timer = 0;

// The same address with all other arguments as they are written.
function jsonAddress() {
  const others = location.search.slice(1).split('&').filter(each => each && !/^format(=|$)/.test(each));
  return `${location.origin}${location.pathname}?${[...others, 'format=json'].join('&')}`;
}

async function ask() {
  const signal = AbortSignal.timeout(PATIENCE);
  const answer = await fetch(jsonAddress(), { cache: 'no-store', signal });
  if (!answer.ok) throw new RangeError(`status ${answer.status}`);
  return answer.json();
}

function whyFailed(error) {
  switch (error.name) {
    case 'TimeoutError': return `nothing came within ${span(PATIENCE)}`;
    case 'SyntaxError': return 'what came is no JSON';
    case 'RangeError': return error.message;
    default: return 'the connection failed';
  }
}

const clock = moment => moment.toLocaleTimeString();

// The line is read out when it changes, so the time of the last answer is not in it.
function putStatus() {
  const since = answered ? `No answer since ${clock(answered)}` : 'No answer yet';
  const text = failed ? `✖ ${since}: ${failed}` : summary;
  if ($('status').textContent !== text) $('status').textContent = text;
  $('status').dataset.failed = failed ? 'yes' : 'no';
  $('updated').textContent = answered ? `updated ${clock(answered)}` : '';
}

function showAnswer(status) {
  try {
    show(status);
    answered = new Date();
    failed = '';
  } catch (error) {
    failed = 'what came is not understood';
    console.error(error);
  }
}

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const started = performance.now();
  const status = await ask().catch(error => {
    failed = whyFailed(error);
  });
  if (status) showAnswer(status);
  putStatus();
  asking = false;
  plan(performance.now() - started);
}

function plan(passed = 0) {
  clearTimeout(timer);
  if (asking || document.hidden || !wanted.every) return;
  timer = setTimeout(refresh, Math.max(wanted.every * 1000 - passed, 100));
}

function controlsChanged() {
  writeAddress();
  readControls();
}

$('filter').addEventListener('input', controlsChanged);
$('only-out').addEventListener('change', controlsChanged);
$('every').addEventListener('change', () => {
  controlsChanged();
  plan();
});
$('now').addEventListener('click', refresh);
addEventListener('hashchange', () => {
  readAddress();
  readControls();
  plan();
});
document.addEventListener('visibilitychange', () => {
  if (document.hidden) clearTimeout(timer);
  else if (wanted.every) refresh();
});

readAddress();
readControls();
refresh();
