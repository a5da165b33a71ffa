/** Numbers in words, as the notebook's outputs say them. */

/** A time in words: 12 s, 3 min, 1 h 20 min. */
export function duration(seconds: number): string {
  if (seconds < 99.5) {
    return `${seconds >= 9.95 ? Math.round(seconds) : Number(Math.max(0, seconds).toFixed(1))} s`;
  }
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) {
    return `${minutes} min`;
  }
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 60)} h`;
}

/** A number of bytes in words: 21 MB. */
export function size(bytes: number): string {
  let count = bytes;
  for (const unit of ['bytes', 'kB', 'MB']) {
    if (count < 999.5) {
      return `${Math.round(count)} ${unit}`;
    }
    count /= 1000;
  }
  return `${count.toFixed(1)} GB`;
}

/** A loss or a score in as many digits as say something. */
export function number(value: number): string {
  return Math.abs(value) >= 0.095 || value === 0 ? value.toFixed(2) : value.toPrecision(2);
}

/** How long ago `then` was (seconds since 1970), or its date. */
export function ago(then: number, now: number = Date.now() / 1000): string {
  const minutes = Math.floor((now - then) / 60);
  if (minutes < 1) {
    return 'just now';
  }
  if (minutes < 60) {
    return `${minutes} min ago`;
  }
  if (minutes < 24 * 60) {
    return `${Math.floor(minutes / 60)} h ago`;
  }
  const date = new Date(then * 1000);
  const year = date.getFullYear() === new Date(now * 1000).getFullYear() ? {} : { year: 'numeric' as const };
  return date.toLocaleDateString('en', { month: 'short', day: 'numeric', ...year });
}

/** A message with a capital in front, unless that is a setting's name or a command. */
export function sentence(message: string): string {
  return /^[a-z]+ /.test(message) ? message.charAt(0).toUpperCase() + message.slice(1) : message;
}
