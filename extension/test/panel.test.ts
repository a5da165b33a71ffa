import { expect, test, vi } from 'vitest';

import panel from '../src/panel';
import { Curves } from '../src/panel/curves';
import { Feed } from '../src/panel/feed';
import { INSERT } from '../src/panel/insert';
import type { Head } from '../src/panel/types';
import { FakeModel } from './fake';

function packed(steps: number[][], scores: number[][] = []): DataView {
  return new DataView(new Float32Array([steps.length, scores.length, ...steps.flat(), ...scores.flat()]).buffer);
}

const step = (number: number, loss = 1 / number): number[] => [number, loss, 5e-4, NaN, 3000];
const head = (more: Partial<Head> = {}): Head => ({
  name: '<b>demo</b>',
  version: 1,
  state: 'running',
  active: true,
  doing: 'training',
  can: ['stop', 'kill'],
  numbers: [['step', '2 of 60']],
  ...more
});

test('curves are read from their numbers; what is not a number is a gap', () => {
  const curves = new Curves();
  curves.take(packed([step(1), [2, NaN, 5e-4, 1, 1]], [[2, 0.5, 0.75]]));
  expect(curves.steps).toEqual([1, 2]);
  expect(curves.loss).toEqual([1, null]);
  expect(curves.score).toEqual([0.75]);
  expect(() => curves.take(new DataView(new Float32Array([3, 0, 1]).buffer))).toThrow('3 steps');
});

test('an increment takes back what a resumed attempt repeats', () => {
  const curves = new Curves();
  curves.take(packed([step(1), step(2), step(3)], [[3, 0.5, 0.75]]));
  curves.take(packed([step(2, 0.5)]), 1);
  expect(curves.steps).toEqual([1, 2]);
  expect(curves.scored).toEqual([]);
  curves.take(packed([step(3)]), Infinity);
  expect(curves.steps).toEqual([1, 2, 3]);
});

test('a feed asks for everything where an increment is missing, and goes on from there', () => {
  const lost = vi.fn();
  const feed = new Feed(lost);
  feed.whole(head(), [], packed([step(1)]), 4);
  feed.more({ kind: 'more', number: 4, head: head(), after: null }, []); // is in it already
  feed.more({ kind: 'more', number: 6, head: head(), after: Infinity }, [packed([step(9)])]);
  expect(lost).toHaveBeenCalledTimes(1);
  expect(feed.curves.steps).toEqual([1]);
  feed.whole(head(), [], packed([step(1), step(2)]), 6);
  feed.more({ kind: 'more', number: 7, head: head({ doing: 'scoring' }), after: null }, [packed([step(3)])]);
  expect(feed.curves.steps).toEqual([1, 2, 3]);
  expect(feed.head.doing).toBe('scoring');
});

test('a run that trains is drawn once a second, and what changes its state at once', async () => {
  const model = new FakeModel({ view: 'run', head: head(), about: [], history: packed([step(1)]), number: 0 });
  const el = document.createElement('div');
  document.body.append(el);
  const widget = panel();
  widget.initialize({ model });
  const undo = widget.render({ model, el });
  const shown = () => el.querySelector('.numbers td')?.textContent;
  await vi.waitFor(() => expect(shown()).toBe('2 of 60'));
  const more = (number: number, changed: Partial<Head>) =>
    model.tell('msg:custom', { kind: 'more', number, head: changed, after: null }, []);
  more(1, { numbers: [['step', '3 of 60']] });
  await new Promise(later => setTimeout(later, 200));
  expect(shown()).toBe('2 of 60');
  await vi.waitFor(() => expect(shown()).toBe('3 of 60'), { timeout: 2000 });
  more(2, { numbers: [['step', '4 of 60']], doing: 'scoring' });
  await vi.waitFor(() => expect(shown()).toBe('4 of 60'), { timeout: 500 });
  undo?.();
});

test('the live view shows names as text, follows its model, and asks the kernel where there is no server', async () => {
  const model = new FakeModel({
    view: 'run',
    head: head(),
    about: [
      { title: '<i>Data</i>', lines: ['⚠ <i>two</i>'], tables: [{ head: ['a'], rows: [['<i>x</i>']], right: [] }] }
    ],
    history: packed([step(1), step(2)]),
    number: 0
  });
  const el = document.createElement('div');
  document.body.append(el);
  const widget = panel();
  widget.initialize({ model });
  const undo = widget.render({ model, el });
  await vi.waitFor(() => expect(el.querySelector('.title')?.textContent).toBe('<b>demo</b> v1 · training'));
  expect(el.querySelector('i')).toBeNull();
  expect(el.querySelector('.numbers td')?.textContent).toBe('2 of 60');
  expect(el.querySelector('.parts')?.textContent).toContain('<i>x</i>');
  expect(model.sent).toContainEqual(expect.objectContaining({ kind: 'seen', seen: true }));
  el.querySelector<HTMLButtonElement>('.buttons button')?.click();
  await vi.waitFor(() => expect(model.sent).toContainEqual({ kind: 'act', action: 'stop' }));
  model.tell('msg:custom', { kind: 'acted', said: 'It saves <b>and</b> stops.' }, []);
  expect(el.querySelector('.said')?.textContent).toBe('It saves <b>and</b> stops.');
  model.tell('msg:custom', { kind: 'more', number: 1, head: head({ doing: 'scoring', can: [] }), after: null }, []);
  await vi.waitFor(() => expect(el.querySelector('.title')?.textContent).toContain('scoring'));
  expect(el.querySelector<HTMLButtonElement>('.buttons button')?.disabled).toBe(true);
  undo?.();
  expect(el.childElementCount).toBe(0);
  expect(model.sent).toContainEqual(expect.objectContaining({ kind: 'seen', seen: false }));
});

test('a cell is handed to the page around, and shown to be copied where nobody takes it', async () => {
  const model = new FakeModel({ head: head({ can: ['clone'] }), about: [], history: undefined, number: 0 });
  const el = document.createElement('div');
  document.body.append(el);
  const widget = panel();
  widget.initialize({ model });
  const undo = widget.render({ model, el });
  await vi.waitFor(() => expect(el.querySelector('.title')?.textContent).toContain('training'));
  model.tell('msg:custom', { kind: 'cell', cell: '%%gpt_finetune <b>a</b>' }, []);
  expect(el.querySelector('.cell pre')?.textContent).toBe('%%gpt_finetune <b>a</b>');
  el.querySelectorAll<HTMLButtonElement>('.cell button')[1]?.click();
  expect(el.querySelector('.cell')?.childElementCount).toBe(0);
  const taken: unknown[] = [];
  document.addEventListener(
    INSERT,
    event => {
      taken.push((event as CustomEvent).detail);
      event.preventDefault();
    },
    { once: true }
  );
  model.tell('msg:custom', { kind: 'cell', cell: '%%gpt_finetune a' }, []);
  expect(taken).toEqual(['%%gpt_finetune a']);
  expect(el.querySelector('.cell')?.childElementCount).toBe(0);
  undo?.();
});

test('held-out rows are a table with a small curve of each', async () => {
  const samples = {
    title: 'What it says of held-out rows now',
    head: ['row', 'probability'],
    rows: [['<i>x</i>', '0.75']],
    right: [],
    courses: [[0, 0.5, 1]]
  };
  const model = new FakeModel({ head: head({ samples }), about: [], history: undefined, number: 0 });
  const el = document.createElement('div');
  document.body.append(el);
  const widget = panel();
  widget.initialize({ model });
  const undo = widget.render({ model, el });
  await vi.waitFor(() => expect(el.querySelector('.below td')?.textContent).toBe('<i>x</i>'));
  expect(el.querySelector('.below .name')?.textContent).toBe('What it says of held-out rows now');
  expect(el.querySelector('.below polyline')?.getAttribute('points')).toBe('1.0,20.0 48.0,11.0 95.0,2.0');
  expect(el.querySelector('.below svg')?.getAttribute('aria-label')).toBe('from 0 to 1');
  undo?.();
});
