"""The inference process: models kept warm behind a private Unix socket. Started with `-m`; nothing imports it.

    POST /v1/classify   {"folder": run directory, "texts": [...]} -> {"labels", "probabilities", "cut_at"}
    GET  /v1/health     -> {"pid", "models", "bytes", "idle", "limit"}
    POST /v1/free       -> {} and the process ends

Every request carries the token (`Authorization: Bearer …`). What goes wrong comes as {"error": one line, "kind": class
name or null} with a status of 400 or above. Its client is `gptx_nb.inference`.
"""
