import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { lossLines, scoreLines, smoothed } from '../src/curves';
import {
  History,
  listed,
  LONGEST,
  POLL,
  Refused,
  RunsModel,
  type Increment,
  type Run,
  type Source,
  type Update
} from '../src/model';

function run(id: string, rest: Partial<Run> = {}): Run {
  const [name = '', version = '1'] = id.split('/');
  return {
    id,
    name,
    version: Number(version),
    kind: 'finetune',
    task: 'text-classification',
    model: 'tiny',
    state: 'finished',
    doing: 'finished',
    active: false,
    attempts: 1,
    device: 'cpu',
    device_name: null,
    score: null,
    score_name: null,
    score_rises: true,
    created: 0,
    seconds: null,
    step: 0,
    total: null,
    share: 0,
    loss: null,
    seconds_left: null,
    tokens_per_second: null,
    facts: [],
    sparkline: [],
    ...rest
  };
}

function update(runs: Run[], rest: Partial<Update> = {}): Update {
  return { revision: 'a-1', whole: false, runs, gone: [], refused: [], begun: [], ...rest };
}

/** A server that can be taken away. */
class Server implements Source {
  there = true;
  websockets = true;
  asked: string[] = [];
  open: { told: (update: Update) => void; closed: () => void; sent: unknown[] }[] = [];
  answer: Update = update([run('reviews/1')], { whole: true });
  increment: Increment = { records: [], cursor: '1:0' };

  runs(since: string): Promise<Update> {
    this.asked.push(`runs ${since}`);
    return this.there ? Promise.resolve(this.answer) : Promise.reject(new TypeError('Failed to fetch'));
  }

  history(id: string, cursor: string): Promise<Increment> {
    this.asked.push(`history ${id} ${cursor}`);
    return this.there ? Promise.resolve(this.increment) : Promise.reject(new TypeError('Failed to fetch'));
  }

  live(opened: () => void, told: (update: Update) => void, closed: () => void) {
    const line = { told, closed, sent: [] as unknown[] };
    if (this.there && this.websockets) {
      this.open.push(line);
      setTimeout(opened, 0);
    } else {
      setTimeout(closed, 0);
    }
    return {
      send: (value: unknown) => line.sent.push(value),
      close: () => {
        this.open = this.open.filter(each => each !== line);
      }
    };
  }
}

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

test('nothing is asked while no view can be seen, and one WebSocket serves all that can', async () => {
  const server = new Server();
  const model = new RunsModel(server);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(server.asked).toEqual([]);
  expect(server.open).toEqual([]);
  model.watch('sidebar', true);
  model.watch('dashboard', true);
  expect(server.open.length).toBe(1);
  model.watch('sidebar', false);
  expect(server.open.length).toBe(1);
  model.watch('dashboard', false);
  expect(server.open.length).toBe(0);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(server.asked).toEqual([]);
});

test('what the WebSocket tells replaces, adds and takes away', async () => {
  const server = new Server();
  const model = new RunsModel(server);
  model.watch('sidebar', true);
  await vi.advanceTimersByTimeAsync(1);
  server.open[0]?.told(update([run('a/1'), run('b/1')], { whole: true }));
  expect(model.connection).toBe('live');
  server.open[0]?.told(update([run('a/1', { doing: 'training' })], { gone: ['b/1'] }));
  expect([...model.runs.keys()]).toEqual(['a/1']);
  expect(model.runs.get('a/1')?.doing).toBe('training');
});

test('without a WebSocket the list is asked for, with its history, and a WebSocket is tried again', async () => {
  const server = new Server();
  server.websockets = false;
  const model = new RunsModel(server);
  const stop = model.follow('reviews/1');
  server.increment = { records: [{ kind: 'step', step: 1, loss: 0.5 }], cursor: '1:50' };
  model.watch('sidebar', true);
  await vi.advanceTimersByTimeAsync(POLL + 100);
  expect(model.connection).toBe('polling');
  expect(server.asked.slice(0, 4)).toEqual(['runs ', 'history reviews/1 ', 'runs a-1', 'history reviews/1 1:50']);
  stop();
  server.websockets = true;
  await vi.advanceTimersByTimeAsync(15_000);
  expect(server.open.length).toBe(1);
});

test('a server that does not answer is asked less and less, and is found again', async () => {
  const server = new Server();
  server.there = false;
  const model = new RunsModel(server);
  model.watch('sidebar', true);
  await vi.advanceTimersByTimeAsync(10 * 60_000);
  expect(model.connection).toBe('offline');
  const before = server.asked.length;
  expect(before).toBeLessThan(30);
  await vi.advanceTimersByTimeAsync(LONGEST - 1);
  expect(server.asked.length).toBeLessThanOrEqual(before + 1);
  server.there = true;
  await vi.advanceTimersByTimeAsync(LONGEST + 100);
  expect(server.open.length).toBe(1);
  server.open[0]?.told(update([run('reviews/1')], { whole: true, revision: 'b-1' }));
  expect(model.connection).toBe('live');
});

test('a server that answers without telling of runs says why, and is asked again', async () => {
  const server = new Server();
  server.websockets = false;
  const answered = vi.spyOn(server, 'runs').mockRejectedValue(new Refused(404, 'It knows nothing of gptx_nb.', null));
  const model = new RunsModel(server);
  model.watch('sidebar', true);
  await vi.advanceTimersByTimeAsync(100);
  expect([model.connection, model.trouble, model.away]).toEqual(['refused', 'It knows nothing of gptx_nb.', true]);
  answered.mockRestore();
  await vi.advanceTimersByTimeAsync(LONGEST);
  expect([model.connection, model.away]).toEqual(['polling', false]);
});

test('a hidden page asks nothing', async () => {
  const server = new Server();
  let state = 'visible';
  const page = document.implementation.createHTMLDocument();
  Object.defineProperty(page, 'visibilityState', { get: () => state });
  const model = new RunsModel(server, page);
  model.watch('sidebar', true);
  expect(server.open.length).toBe(1);
  state = 'hidden';
  page.dispatchEvent(new Event('visibilitychange'));
  expect(server.open.length).toBe(0);
  state = 'visible';
  page.dispatchEvent(new Event('visibilitychange'));
  await vi.advanceTimersByTimeAsync(1);
  expect(server.open.length).toBe(1);
});

test('a resumed attempt takes back the steps that it repeats', () => {
  const history = new History();
  history.take({
    cursor: '2:10',
    records: [
      { kind: 'step', step: 1, loss: 0.9 },
      { kind: 'step', step: 2, loss: 0.8 },
      { kind: 'evaluation', step: 2, validation_loss: 0.7, accuracy: 0.5 },
      { kind: 'start', step: 1 },
      { kind: 'step', step: 2, loss: null }
    ]
  });
  expect(history.steps).toEqual([
    { step: 1, loss: 0.9 },
    { step: 2, loss: null }
  ]);
  expect(history.evaluations).toEqual([]);
});

test('runs are filtered by words and state, and ordered', () => {
  const runs = [
    run('a/1', { created: 3, score: 0.5 }),
    run('b/1', { created: 2, score: 0.9, model: 'gpt2' }),
    run('c/1', { created: 1, active: true, state: 'running', doing: 'training' }),
    run('d/1', { created: 0, state: 'failed', doing: 'failed' }),
    run('e/1', { created: -1, score: 1.2, score_name: 'bits a byte', score_rises: false }),
    run('f/1', { created: -2, score: 0.8, score_name: 'bits a byte', score_rises: false })
  ];
  const ids = (...rest: Parameters<typeof listed> extends [unknown, ...infer R] ? R : never) =>
    listed(runs, ...rest)
      .map(each => each.name)
      .join('');
  expect(ids('', 'all', 'newest')).toBe('abcdef');
  expect(ids('', 'all', 'score')).toBe('bafecd');
  expect(ids('', 'all', 'state')[0]).toBe('c');
  expect(ids('GPT2 b', 'all', 'newest')).toBe('b');
  expect(ids('', 'unfinished', 'newest')).toBe('d');
  expect(ids('', 'active', 'newest')).toBe('c');
});

test('of one run the losses while learning and on held-out rows are drawn, of several one line each', () => {
  const history = new History();
  history.take({
    cursor: '',
    records: [
      { kind: 'step', step: 1, loss: 1 },
      { kind: 'evaluation', step: 1, validation_loss: 0.7, accuracy: 0.5 }
    ]
  });
  const one = [{ run: run('a/1'), history }];
  expect(lossLines(one).map(line => line.label)).toEqual(['learning', 'held out']);
  expect(scoreLines(one, 'accuracy', [['TF-IDF', 0.8]]).map(line => line.label)).toEqual(['this model', 'TF-IDF']);
  expect(lossLines([...one, { run: run('b/2'), history }]).map(line => line.label)).toEqual(['a v1', 'b v2']);
});

test('smoothing begins at the first value and leaves gaps', () => {
  const found = smoothed([1, null, 1]);
  expect(found[0]).toBeCloseTo(1);
  expect(found[1]).toBeNull();
  expect(found[2]).toBeCloseTo(1);
});
