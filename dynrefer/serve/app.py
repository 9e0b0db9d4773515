"""The routes. Everything that takes longer than a look at a dict runs on a thread of the service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

import dynrefer
from dynrefer.config import field_comments

from . import chat, schema
from .client_options import open_names
from .gate import LEFT, VISIT, Gate
from .service import Asked, Gone, Running, Service, Visit
from .settings import Refusal, Settings, invalid

ABOUT = """Describes regions of pictures. `POST /v1/regions` takes pictures with boxes or masks and gives one structured
result a region; `/v1/chat/completions` does the same in OpenAI's form. Errors are `{"error": {"message", "type",
"param", "code"}}`."""
STATUSES = {
    400: "the request is wrong",
    401: "no key, or a wrong one",
    404: "no such model",
    408: "the request came too slowly",
    413: "too large",
    415: "not JSON",
    429: "the queue is full; Retry-After says when to come again",
    500: "the model failed",
    503: "busy, or ending",
    504: "not finished in time",
}


def create_app(model: Any, settings: Settings, options: Mapping[str, Any] | None = None) -> Gate:
    """The ASGI application; `.service` is closed when it ends. ValueError for options that the model refuses."""
    service = Service(model, settings, options)
    app = FastAPI(title="dynrefer", version=dynrefer.__version__, description=ABOUT, redoc_url=None)
    created = int(time.time())
    errors = {status: {"model": schema.ErrorBody, "description": text} for status, text in STATUSES.items()}
    gate = Gate(app, service, settings)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        request.scope[VISIT].code = refusal.code
        return _json(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        what = f"{request.method} {request.url.path[:100]}: {error.detail}; /docs lists what there is"
        answer = await refused(request, Refusal(error.status_code, what, code))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=LEFT)

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return await refused(request, Refusal(500, "the server made a mistake; its log says which", "internal_error"))

    def check_model(name: str | None) -> None:
        if name not in (None, settings.name):
            raise Refusal(
                404, f"no model {name[:100]!r}; this server's is {settings.name!r}", "model_not_found", "model"
            )

    @app.post(
        "/v1/regions",
        response_model=schema.RegionsAnswer,
        responses=errors,
        openapi_extra=_body("RegionsRequest"),
        summary="Describe regions",
    )
    async def regions(request: Request) -> Response:
        visit: Visit = request.scope[VISIT]
        asked_for = await service.on_thread(schema.parse, schema.RegionsRequest, visit.body)
        visit.body = b""
        check_model(asked_for.model)
        asked = [Asked(each.image, each.regions, f"images[{number}]") for number, each in enumerate(asked_for.images)]
        async with service.running(visit, asked, asked_for.box_format, asked_for.options) as running:
            answers = [answer async for some in service.answers(visit, running.job) for answer in some]
        names = [each.id for each in asked_for.images]
        return await service.on_thread(_regions_answer, visit, settings.name, names, running, answers)

    @app.post(
        "/v1/chat/completions",
        response_model=chat.ChatAnswer,
        responses={**errors, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        openapi_extra=_body("ChatRequest"),
        summary="Describe regions, in OpenAI's form",
    )
    async def completions(request: Request) -> Response:
        visit: Visit = request.scope[VISIT]
        asked_for = await service.on_thread(schema.parse, chat.ChatRequest, visit.body)
        visit.body = b""
        check_model(asked_for.model)
        asked, box_format, notes = await service.on_thread(chat.read_chat, asked_for)
        options, seed = chat.chat_options(service, asked_for)
        as_json = asked_for.response_format is not None and asked_for.response_format.type == "json_object"
        name = f"chatcmpl-{visit.id}"
        with_usage = bool(asked_for.stream_options and asked_for.stream_options.include_usage)
        stack = AsyncExitStack()
        try:
            running = await stack.enter_async_context(service.running(visit, asked, box_format, options, seed))
            answers = service.answers(visit, running.job)
            writer = chat.Writer(as_json, running.job.regions > 1)
            if not asked_for.stream:
                found = [answer async for some in answers for answer in some]
                return _json(await service.on_thread(chat.whole, name, settings.name, writer, found, notes))
            first = await anext(answers, None)  # what is wrong with the request is told by the status
            rest = _again(first, answers)
            events = chat.stream(name, settings.name, writer, rest, notes, with_usage, _failed)
            return Events(events, stack.pop_all())
        finally:
            await stack.aclose()

    def about_model() -> dict[str, Any]:
        kind = model.Options
        comments = field_comments(kind)
        return {
            "id": settings.name,
            "object": "model",
            "created": created,
            "owned_by": "dynrefer",
            "answers": sorted(model.answers),
            "options": {name: comments.get(name, "") for name in open_names(kind)},
        }

    errors_of_get = {status: errors[status] for status in (401, 404)}

    @app.get("/v1/models", responses={401: errors[401]}, summary="The model, what it answers, and its options")
    async def models() -> Response:
        return _json({"object": "list", "data": [about_model()]})

    @app.get("/v1/models/{name:path}", responses=errors_of_get, summary="One model")
    async def one_model(name: str) -> Response:
        check_model(name)
        return _json(about_model())

    @app.get("/health", responses={503: errors[503]}, summary="200 while the process can work")
    async def health() -> Response:
        if not service.batcher.healthy:
            raise Refusal(503, "the model failed several times in a row; start the server again", "unhealthy")
        return _json({"status": "ok"})

    @app.get("/ready", responses={503: errors[503]}, summary="200 while requests are taken")
    async def ready() -> Response:
        if gate.draining:
            raise Refusal(503, "the server is ending", "ending", retry_after=5)
        if not service.batcher.healthy:
            raise Refusal(503, "the model failed several times in a row", "unhealthy")
        if service.batcher.waiting >= settings.max_queue:
            raise Refusal(503, "the queue is full", "queue_full", retry_after=1)
        return _json({"status": "ready", "model": settings.name})

    @app.get("/metrics", summary="Counts, for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=service.metrics.content_type)

    app.openapi = lambda: _openapi(app, gate.key is not None)  # type: ignore[method-assign]
    return gate


def _regions_answer(visit: Visit, model: str, names: list[str | None], running: Running, answers: list) -> Response:
    found: list[list[dict]] = [[] for _ in names]
    for answer in answers:
        found[answer.example].append(answer.result.to_dict())
    job = running.job
    waited = (job.began or job.submitted) - job.submitted
    seconds = {
        "reading": running.read_seconds,
        "waiting": waited,
        "model": job.model_seconds,
        "total": time.monotonic() - visit.began,
    }
    images = [
        {"id": str(number) if name is None else name, "width": hw[1], "height": hw[0], "regions": own}
        for number, (name, hw, own) in enumerate(zip(names, running.image_hws, found, strict=True))
    ]
    tokens = sum(answer.tokens for answer in answers)
    return _json(
        {
            "id": f"regions-{visit.id}",
            "object": "regions",
            "created": int(time.time()),
            "model": model,
            "images": images,
            "usage": {"images": len(images), "regions": len(answers), "completion_tokens": tokens},
            "timings": {name: round(value, 4) for name, value in seconds.items()},
        }
    )


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers=dict(headers or {}), media_type="application/json")


async def _again(first: list | None, rest: AsyncIterator[list]) -> AsyncIterator[list]:
    if first is not None:
        yield first
        async for some in rest:
            yield some


class Events(StreamingResponse):
    """Server-sent events; the request's job leaves the queue when they end, or the client does."""

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack):
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self.stack:
            await super().__call__(scope, receive, send)


def _failed(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    return invalid(str(error)) if isinstance(error, ValueError) else Refusal(500, "the model failed", "model_failed")


def _body(name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _openapi(app: FastAPI, with_key: bool) -> dict[str, Any]:
    """FastAPI's page with the requests' schemas: bodies are read by the gate, so it does not see them."""
    if app.openapi_schema is None:
        page = FastAPI.openapi(app)
        schemas = page.setdefault("components", {}).setdefault("schemas", {})
        for kind in (schema.RegionsRequest, chat.ChatRequest):
            own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(own.pop("$defs", {}))
            schemas[kind.__name__] = own
        for path in page["paths"].values():
            for method in path.values():
                method["responses"].pop("422", None)
        if with_key:
            page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in (each for name, each in page["paths"].items() if name.startswith("/v1/")):
                for method in path.values():
                    method["security"] = [{"key": []}]
        app.openapi_schema = page
    return app.openapi_schema
