import { expect, test } from 'vitest';

import { createChart, ticks } from '../src/chart';

test('ticks are round numbers inside the range', () => {
  expect(ticks(0, 1, 4)).toEqual([0, 0.5, 1]);
  expect(ticks(0, 600, 5)).toEqual([0, 200, 400, 600]);
  expect(ticks(0.31, 0.72, 4)).toEqual([0.4, 0.6]);
});

test('a chart tells its last values in words, and shows labels as text', () => {
  const host = document.createElement('div');
  const chart = createChart(host, { title: 'loss', xLabel: 'step', fromZero: true });
  chart.update([{ label: '<b>a</b>', x: [1, 2, 3], y: [0.9, null, 0.25], style: 'solid', color: 0 }]);
  expect(host.querySelector('svg')?.getAttribute('aria-label')).toBe('loss: <b>a</b> 0.25');
  expect(host.querySelector('b')).toBeNull();
  // The gap is not bridged.
  expect(host.querySelector('path')?.getAttribute('d')).toMatch(/^M[\d. ]+M[\d. ]+$/);
  chart.dispose();
  expect(host.childElementCount).toBe(0);
});
