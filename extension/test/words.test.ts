import { expect, test } from 'vitest';

import { ago, duration, number, size } from '../src/words';

test('times read as in the notebook', () => {
  expect([0.4, 9, 12.3, 200, 3600, 4800].map(duration)).toEqual(['0.4 s', '9 s', '12 s', '3 min', '1 h', '1 h 20 min']);
});

test('sizes and numbers have as many digits as say something', () => {
  expect([5, 21_000_000, 3_100_000_000].map(size)).toEqual(['5 bytes', '21 MB', '3.1 GB']);
  expect([0.8125, 0.0123, 0].map(number)).toEqual(['0.81', '0.012', '0.00']);
});

test('a moment is told by its distance, and one long ago by its date', () => {
  const now = Date.UTC(2026, 10, 25, 12) / 1000;
  expect(ago(now - 5, now)).toBe('just now');
  expect(ago(now - 600, now)).toBe('10 min ago');
  expect(ago(now - 7200, now)).toBe('2 h ago');
  expect(ago(now - 40 * 86_400, now)).toBe('Oct 16');
  expect(ago(now - 400 * 86_400, now)).toBe('Oct 21, 2025');
});
