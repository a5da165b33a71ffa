const AGAIN = 30_000; // milliseconds: a page that is closed says nothing, so one that is open says that it is

/** Tell whether somebody sees an element: its browser tab is in front, and JupyterLab shows the place where it is. */
export function whileSeen(node: HTMLElement, tell: (seen: boolean) => void): () => void {
  let inside = true;
  let last: boolean | undefined;
  const look = () => {
    const seen = inside && document.visibilityState === 'visible';
    if (seen !== last) {
      last = seen;
      tell(seen);
    }
  };
  const watcher = new IntersectionObserver(
    entries => {
      inside = entries[entries.length - 1]?.isIntersecting ?? inside;
      look();
    },
    { rootMargin: '300px' } // what is about to be scrolled to counts as seen
  );
  watcher.observe(node);
  document.addEventListener('visibilitychange', look);
  const again = setInterval(() => last === true && tell(true), AGAIN);
  look();
  return () => {
    clearInterval(again);
    watcher.disconnect();
    document.removeEventListener('visibilitychange', look);
    if (last !== false) {
      tell(false);
    }
  };
}
