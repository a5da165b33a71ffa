import { ServerConnection } from '@jupyterlab/services';
import { expect, test } from 'vitest';

import { Api } from '../src/api';
import { Refused } from '../src/model';

/** What asking for the list comes to, where the server gives this answer. */
async function asked(status: number, body: string): Promise<unknown> {
  const fetch = () => Promise.resolve(new Response(body, { status }));
  const api = new Api(ServerConnection.makeSettings({ baseUrl: 'http://localhost/', fetch }));
  return api.runs('').catch((error: unknown) => error);
}

test('a refusal of the server extension is told in its own words, with its setting', async () => {
  const refused = await asked(400, '{"message": "epochs: too few", "field": "epochs"}');
  expect(refused).toEqual(new Refused(400, 'epochs: too few', 'epochs'));
  expect((refused as Refused).field).toBe('epochs');
});

test('a server that lacks the extension is told from one that is away', async () => {
  for (const body of ['<html>404</html>', '{"message": "Not Found"}']) {
    expect(await asked(404, body)).toHaveProperty('message', expect.stringContaining('knows nothing of gptx_nb'));
  }
  expect(await asked(403, '{"message": "Forbidden", "field": null}')).toHaveProperty(
    'message',
    expect.stringContaining('Reload the page')
  );
  expect(await asked(500, '<html>')).toHaveProperty('message', expect.stringContaining('answered 500'));
  expect(await asked(200, '<html>of a page to log in</html>')).toBeInstanceOf(Refused);
  expect(await asked(502, '<html>')).not.toBeInstanceOf(Refused);
});
