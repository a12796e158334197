# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Endpoints of a Hub: access rights to repositories, and their contents."""

import base64
import hashlib
import json

import yaml
from helpers.hub_repository import LFS_SUFFIXES, Content, Repository, card_errors
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

HARD_ERRORS = {401: "Invalid credentials in Authorization header", 403: "You have no rights to this"}


class Refused(Exception):
    """An error response in place of the requested answer."""

    def __init__(self, status, code="", message=""):
        self.status, self.code, self.message = status, code, message or HARD_ERRORS.get(status, code)

    def response(self):
        headers = {"X-Error-Message": self.message} | ({"X-Error-Code": self.code} if self.code else {})
        headers |= {"Retry-After": "0"} if self.status == 429 else {}
        return JSONResponse({"error": self.message}, self.status, headers)


class Endpoints:
    """The requests that the client makes. Tokens: `write` and `read` of user alice, `other` of user bob."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by sha256
        self.tokens = {"write": ("alice", True), "read": ("alice", False), "other": ("bob", True)}
        self.validated: list[dict] = []  # answers about the metadata of cards

    def routing(self):
        def route(path, endpoint, *methods):
            async def guarded(request):
                try:
                    return await endpoint(request, **request.path_params)
                except Refused as refused:
                    return refused.response()

            return Route(path, guarded, methods=methods or ["GET"])

        api, name = "/api/{kinds}", "{user}/{repo}"
        return [
            route("/api/whoami-v2", self.whoami),
            route("/api/validate-yaml", self.validate_yaml, "POST"),
            route("/api/repos/create", self.create, "POST"),
            route("/api/repos/delete", self.delete, "DELETE"),
            route(f"{api}/{name}", self.info),
            route(f"{api}/{name}/revision/{{revision:path}}", self.info),
            route(f"{api}/{name}/refs", self.refs),
            route(f"{api}/{name}/tree/{{revision}}", self.tree),
            route(f"{api}/{name}/preupload/{{revision}}", self.preupload, "POST"),
            route(f"{api}/{name}/commit/{{branch}}", self.commit, "POST"),
            route(f"{api}/{name}/branch/{{branch}}", self.branch, "POST", "DELETE"),
            route(f"{api}/{name}/tag/{{revision}}", self.tag, "POST", "DELETE"),
            route(f"{api}/{name}/variables", self.variables, "POST", "GET"),
            route("/lfs/{sha}", self.put_object, "PUT"),
            route("/spaces/{user}/{repo}.git/info/lfs/objects/batch", self.batch, "POST"),
            route("/{user}/{repo}.git/info/lfs/objects/batch", self.batch, "POST"),
            route("/spaces/{user}/{repo}/resolve/{revision}/{path:path}", self.resolve_space, "GET", "HEAD"),
            route("/{user}/{repo}/resolve/{revision}/{path:path}", self.resolve, "GET", "HEAD"),
        ]

    # access rights

    def user(self, request):
        """The user name of a request, and True if the token may write; (None, False) without a token."""
        header = request.headers.get("authorization")
        if header is None:
            return None, False
        if header.removeprefix("Bearer ") not in self.tokens:
            raise Refused(401)
        return self.tokens[header.removeprefix("Bearer ")]

    def readable(self, request, user, repo, kinds="models"):
        name, _ = self.user(request)
        repository = self.repositories.get((kinds.removesuffix("s"), f"{user}/{repo}"))
        if repository is None or (repository.private and name != user):
            raise Refused(401 if name is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def writable(self, request, user, repo, kinds="models"):
        repository = self.readable(request, user, repo, kinds)
        if self.user(request) != (user, True):
            raise Refused(403)
        return repository

    @staticmethod
    def commit_of(repository, revision):
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    async def whoami(self, request):
        name, writes = self.user(request)
        if name is None:
            raise Refused(401)
        role = {"accessToken": {"displayName": "test", "role": "write" if writes else "read"}}
        return JSONResponse({"type": "user", "name": name, "orgs": [], "auth": role})

    # repositories

    async def create(self, request):
        fields = await request.json()
        name, writes = self.user(request)
        kind, user = fields.get("type") or "model", fields.get("organization") or name
        full = f"{user}/{fields['name']}"
        url = f"{self.url}/{'spaces/' if kind == 'space' else ''}{full}"
        if not writes or user != name:
            raise Refused(403, message=f"You don't have the rights to create a {kind} under the namespace {user}")
        if (kind, full) in self.repositories:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = bool(fields.get("private")) or fields.get("visibility") == "private"
        repository = self.add(full, kind=kind, private=private, sdk=fields.get("sdk"))
        repository.variables |= {variable["key"]: variable["value"] for variable in fields.get("variables") or []}
        return JSONResponse({"url": url, "name": full, "id": full})

    async def delete(self, request):
        fields = await request.json()
        user, kind = fields.get("organization") or self.user(request)[0], fields.get("type") or "model"
        self.writable(request, user, fields["name"], f"{kind}s")
        del self.repositories[kind, f"{user}/{fields['name']}"]
        return JSONResponse({})

    async def info(self, request, kinds, user, repo, revision="main"):
        repository = self.readable(request, user, repo, kinds)
        commit = self.commit_of(repository, revision)
        card = commit.files.get("README.md")
        head = card.data.decode().split("---\n") if card else []
        answer = {"id": repository.name, "modelId": repository.name, "sha": commit.oid, "private": repository.private}
        answer |= {"tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in commit.files]}
        answer |= {"cardData": yaml.safe_load(head[1]) if len(head) > 2 else None}
        if repository.kind == "space":
            answer |= {"sdk": repository.sdk, "runtime": {"stage": "RUNNING", "hardware": {}, "storage": None}}
        return JSONResponse(answer)

    async def refs(self, request, kinds, user, repo):
        repository = self.readable(request, user, repo, kinds)
        branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repository.branches.items()]
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repository.tags.items()]
        return JSONResponse({"branches": branches, "tags": tags, "converts": []})

    async def tree(self, request, kinds, user, repo, revision):
        files = self.commit_of(self.readable(request, user, repo, kinds), revision).files
        return JSONResponse([content.entry(path) for path, content in sorted(files.items())])

    async def branch(self, request, kinds, user, repo, branch):
        repository = self.writable(request, user, repo, kinds)
        if request.method == "DELETE":
            repository.branches.pop(branch, None)
            return JSONResponse({})
        if branch in repository.branches:
            raise Refused(409, message="Reference already exists")
        start = (await request.json() if await request.body() else {}).get("startingPoint") or "main"
        repository.branches[branch] = self.commit_of(repository, start).oid
        return JSONResponse({})

    async def tag(self, request, kinds, user, repo, revision):
        repository = self.writable(request, user, repo, kinds)
        if request.method == "DELETE":
            repository.tags.pop(revision, None)
            return JSONResponse({})
        tag = (await request.json())["tag"]
        if tag in repository.tags:
            raise Refused(409, message="Tag already exists")
        repository.tags[tag] = self.commit_of(repository, revision).oid
        return JSONResponse({})

    async def variables(self, request, kinds, user, repo):
        repository = self.writable(request, user, repo, kinds)
        if request.method == "POST":
            variable = await request.json()
            repository.variables[variable["key"]] = variable["value"]
        return JSONResponse({key: {"key": key, "value": value} for key, value in repository.variables.items()})

    # uploads and downloads

    async def validate_yaml(self, request):
        """Check that the front matter of a card is a mapping with values of the right types."""
        fields = await request.json()
        parts, errors = fields["content"].split("---\n"), []
        try:
            data = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else {}
            if not isinstance(data, dict):
                errors = ["the front matter is not a mapping"]
            else:
                errors = card_errors(data, fields.get("repoType") or "model")
        except yaml.YAMLError as error:
            errors = [str(error)]
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.validated.append(answer)
        return JSONResponse(answer, 400 if errors else 200)

    async def preupload(self, request, kinds, user, repo, revision):
        repository = self.writable(request, user, repo, kinds)
        old = self.commit_of(repository, revision).files
        answers = []
        for file in (await request.json())["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            oid = old[file["path"]].oid if file["path"] in old else None
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answers})

    async def batch(self, request, user, repo):
        self.writable(request, user, repo, "spaces" if request.url.path.startswith("/spaces/") else "models")
        answers = []
        for entry in (await request.json())["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{entry['oid']}", "header": {}}}}
            answers.append(entry | (upload if entry["oid"] not in self.objects else {}))
        return JSONResponse({"transfer": "basic", "objects": answers})

    async def put_object(self, request, sha):
        data = await request.body()
        if request.scope["corrupts"]:
            data = bytes([data[0] ^ 1]) + data[1:]
        if hashlib.sha256(data).hexdigest() != sha:
            raise Refused(400, message=f"the content is not that of sha256 {sha}")
        self.objects[sha] = data
        return Response()

    async def commit(self, request, kinds, user, repo, branch):
        repository = self.writable(request, user, repo, kinds)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        before = self.commit_of(repository, branch)
        if branch not in repository.branches:
            raise Refused(404, "RevisionNotFound", f"'{branch}' is no branch")
        if header.get("parentCommit") not in (None, before.oid):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(before.files)
        for key, value in ((line["key"], line["value"]) for line in lines if line["key"] != "header"):
            path = value["path"]
            if key == "file":
                files[path] = Content(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, message=f"the LFS object of '{path}' was not uploaded")
                files[path] = Content(self.objects[value["oid"]], lfs=True)
            elif path not in files and key == "deletedFile":
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                files = {name: c for name, c in files.items() if name != path and not name.startswith(f"{path}/")}
        oid = repository.commit(branch, files, header["summary"])
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{user}/{repo}/commit/{oid}"})

    async def resolve_space(self, request, **where):
        return await self.resolve(request, kinds="spaces", **where)

    async def resolve(self, request, user, repo, revision, path, kinds="models"):
        commit = self.commit_of(self.readable(request, user, repo, kinds), revision)
        if path not in commit.files:
            refused = Refused(404, "EntryNotFound", "Entry not found").response()
            refused.headers["X-Repo-Commit"] = commit.oid
            return refused
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{content.oid}"', "Accept-Ranges": "bytes"}
        if content.lfs:
            headers |= {"X-Linked-Etag": f'"{content.oid}"', "X-Linked-Size": str(len(content.data))}
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(content.data))})
        data, byte_range = content.data, request.headers.get("range")
        if byte_range is None:
            return Response(data, headers=headers)
        first, _, last = byte_range.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        if begin >= len(data):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Response(data[begin : end + 1], 206, headers | {"Content-Range": f"bytes {begin}-{end}/{len(data)}"})
