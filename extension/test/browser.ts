/** What a browser has and jsdom lacks, as far as the charts need it: a canvas that remembers what was drawn. */

export const drawn: string[] = [];

const context = new Proxy(
  {},
  {
    get: (kept: Record<string, unknown>, name: string) =>
      kept[name] ??
      ((...given: unknown[]) => {
        drawn.push(name);
        return name === 'measureText' ? { width: 6 * String(given[0]).length } : undefined;
      }),
    set: (kept, name: string, value) => {
      kept[name] = value;
      return true;
    }
  }
);

HTMLCanvasElement.prototype.getContext = (() => context) as unknown as typeof HTMLCanvasElement.prototype.getContext;
Object.defineProperty(HTMLElement.prototype, 'clientWidth', { get: () => 600 });
window.matchMedia = () => ({ addEventListener: () => undefined, removeEventListener: () => undefined }) as never;
globalThis.Path2D = class {
  moveTo(): void {
    drawn.push('path.moveTo');
  }
  lineTo(): void {
    drawn.push('path.lineTo');
  }
  arc(): void {
    drawn.push('path.arc');
  }
  rect(): void {
    drawn.push('path.rect');
  }
} as unknown as typeof Path2D;
globalThis.IntersectionObserver = class {
  observe(): void {
    drawn.push('observe');
  }
  disconnect(): void {
    drawn.push('disconnect');
  }
} as unknown as typeof IntersectionObserver;
globalThis.DragEvent = class extends MouseEvent {} as unknown as typeof DragEvent;
