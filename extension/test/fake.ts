import type { Model } from '../src/panel/types';

/** A model as anywidget gives it, without a kernel behind. */
export class FakeModel implements Model {
  sent: unknown[] = [];
  private readonly listeners = new Map<string, Set<(...args: never[]) => void>>();

  constructor(readonly state: Record<string, unknown>) {}

  get(name: string): unknown {
    return this.state[name];
  }
  set(name: string, value: unknown): void {
    this.state[name] = value;
  }
  save_changes(): void {
    this.sent.push('saved');
  }
  send(content: unknown): void {
    this.sent.push(content);
  }
  on(event: string, callback: (...args: never[]) => void): void {
    this.listeners.set(event, (this.listeners.get(event) ?? new Set()).add(callback));
  }
  off(event: string, callback: (...args: never[]) => void): void {
    this.listeners.get(event)?.delete(callback);
  }
  tell(event: string, ...given: unknown[]): void {
    this.listeners.get(event)?.forEach(each => (each as (...args: unknown[]) => void)(...given));
  }
}
