import { expect, test } from 'vitest';

import { bounds, createChart, short, shortest, valueAt, type Line } from '../src/chart';
import { aligned } from '../src/chart/align';
import { drawn } from './browser';

const line = (label: string, x: number[], y: (number | null)[]): Line => ({ label, x, y, style: 'solid', color: 0 });

test('a chart tells its last values in words, and shows labels as text', () => {
  const host = document.createElement('div');
  const chart = createChart(host, { title: 'loss', xLabel: 'step', fromZero: true });
  chart.update([line('<b>a</b>', [1, 2, 3], [0.9, null, 0.25])]);
  expect(host.querySelector('[role=img]')?.getAttribute('aria-label')).toBe('loss: <b>a</b> 0.25');
  expect(host.querySelector('.gptx-Chart-legend')?.textContent).toBe('<b>a</b>0.25');
  expect(host.querySelector('b')).toBeNull();
  chart.update([line('<b>a</b>', [1, 2, 3, 4], [0.9, null, 0.25, 0.125])]);
  expect(host.querySelector('.gptx-Chart-legend')?.textContent).toBe('<b>a</b>0.13');
  chart.dispose();
  expect(host.childElementCount).toBe(0);
});

test('a line of one point is drawn as a point', async () => {
  const host = document.createElement('div');
  const chart = createChart(host, { title: 'loss', xLabel: 'step', fromZero: true });
  const arcs = async () => {
    await new Promise(later => setTimeout(later, 20)); // it draws a moment later
    return drawn.filter(each => each === 'path.arc').length;
  };
  const before = await arcs();
  chart.update([line('a', [1], [5])]);
  const once = await arcs();
  expect(once).toBeGreaterThan(before);
  chart.update([line('a', [1, 2], [5, 4])]);
  expect(await arcs()).toBe(once);
  chart.dispose();
});

test('lines over other steps share one axis, without gaps where they have no value', () => {
  const x = [1, 2, 3, 4];
  const [steps, first, second] = aligned([line('a', x, [1, null, 3, 4]), line('b', [2, 5], [7, 8])]);
  expect(steps).toEqual([1, 2, 3, 4, 5]);
  expect(first).toEqual([1, null, 3, 4, undefined]);
  expect(second).toEqual([undefined, 7, undefined, undefined, 8]);
  expect(aligned([line('a', x, [1, 2, 3, 4]), line('b', [...x], [5, 6, 7, 8])])[0]).toBe(x);
});

test('an axis has room, begins at zero where it should, and its numbers are told apart', () => {
  const options = { title: '', xLabel: '', fromZero: true };
  expect(bounds(0.2, 1, options)).toEqual([0, 1.05]);
  expect(bounds(0.2, 1, { ...options, top: 1 })).toEqual([0, 1]);
  expect(bounds(0.5, 0.5, { ...options, fromZero: false })[0]).toBeLessThan(0.5);
  expect(bounds(null, null, options)).toEqual([0, 1]);
  expect(shortest([0, 0.25, 0.5])).toEqual(['0.00', '0.25', '0.50']);
  expect(shortest([0, 0.1, 0.2])).toEqual(['0.0', '0.1', '0.2']);
  expect(shortest([0, 2.5, 5])).toEqual(['0.0', '2.5', '5.0']);
  expect(shortest([0, 5, 10])).toEqual(['0', '5', '10']);
  expect(shortest([0, 0.0002, 0.0004])).toEqual(['0', '2e-4', '4e-4']);
  expect(shortest([0, 20_000])).toEqual(['0', '20k']);
  expect([short(1234.5), short(0.5), short(0.00123), short(0)]).toEqual(['1,235', '0.50', '0.0012', '0.00']);
});

test('under the cursor stands the value of the step, or of the last step that has one', () => {
  const scores = line('score', [10, 20], [0.5, 0.75]);
  expect([valueAt(scores, 5), valueAt(scores, 10), valueAt(scores, 19), valueAt(scores, 99)]).toEqual([
    null,
    0.5,
    0.5,
    0.75
  ]);
});
