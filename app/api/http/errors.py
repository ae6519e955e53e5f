"""Problems as responses, each in the shape of the dialect that was spoken."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from app import service
from app.api.http.problems import ApiError, Problem, problem_of
from app.api.openai.errors import is_openai, openai_body, openai_status
from app.api.tgi.errors import is_tgi, tgi_body, tgi_status


def own_body(problem: Problem) -> dict[str, str]:
    """The shape of ``/token_stream`` and the operational routes."""
    return {"error": problem.message, "error_type": problem.kind}


def respond(scope: Scope, problem: Problem) -> Response:
    """Tell a problem in the shape that clients of the route expect."""
    path = scope["path"]
    if is_openai(path):
        return JSONResponse(openai_body(problem), openai_status(problem), headers=problem.headers)
    if is_tgi(path, scope["method"]):
        return JSONResponse(tgi_body(problem), tgi_status(problem), headers=problem.headers)
    return JSONResponse(own_body(problem), problem.status, headers=problem.headers)


def service_error(request: Request, error: Exception) -> Response:
    """Answer what the service refused."""
    assert isinstance(error, service.ServiceError)
    return respond(request.scope, problem_of(error))


def api_error(request: Request, error: Exception) -> Response:
    """Answer what was refused before the service saw it."""
    assert isinstance(error, ApiError)
    return respond(request.scope, error.problem)


def http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    kind, message = {
        404: ("not_found", f"there is nothing at {path}"),
        405: ("method_not_allowed", f"{request.method} is not allowed at {path}"),
    }.get(error.status_code, ("http", error.detail))
    response = respond(request.scope, Problem(error.status_code, kind, message))
    response.headers.update(error.headers or {})
    return response


def client_gone(_request: Request, _error: Exception) -> Response:
    """End a request whose client hung up before its body was read; nobody receives this."""
    return Response(status_code=400)


def server_error(request: Request, _error: Exception) -> Response:
    """Answer a fault of ours; the log has the rest."""
    return respond(request.scope, Problem(500, "internal", "the server failed; its log says why"))
