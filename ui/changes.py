"""Changes: how an open page learns what is new, by one cheap request, and updates only that.

An event of Gradio's is two requests, builds each of its outputs anew, and takes its turn in a queue; so none happens
before there is something to show, and how far a job is comes without one.
"""

import json
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from gradio.blocks import Block

from backend.jobs.store import Job, JobState
from backend.jobs.supervisor import PREVIEW
from ui.jobs.job import going, row, standing
from ui.kit.errors import Handler
from ui.kit.events import QUIET
from ui.studio import Studio
from ui.visitor import visitor_of

SEEN = {
    "jobs": "#job-view",
    "training": "#job-view",
    "log": "#job-log",
    "publications": "#publish-result",
    "server": "#chat-status",
    "rows": "body",
    "calibration": "body",
}
"""What can change, and the element that shows it, which must be visible; for rows any, as estimates are everywhere."""


def add_changes(app: FastAPI, studio: Studio) -> None:
    """Open /changes, which tells visitors what changed of their own since they last asked: often nothing."""
    started = secrets.token_hex(4)  # a page of another start has sessions and choices that are no longer known

    @app.get("/changes")
    def changes(request: Request, since: str = "") -> Response:
        owner = visitor_of(studio.settings, request.scope).owner
        told = {"app": started, **(_of(studio, owner) if owner else {"versions": {}, "running": {}})}
        version = _version(told)
        return Response(status_code=204) if since == version else JSONResponse({"version": version, **told})


def _of(studio: Studio, owner: str) -> dict[str, Any]:
    """Return a version of each thing in SEEN, and how far running jobs are: in the list, in words, and as a bar."""
    known = studio.supervisor.all(owner)
    jobs, looks = [job for job in known if job.kind != PREVIEW], [job for job in known if job.kind == PREVIEW]
    running = [job for job in jobs if job.state == JobState.RUNNING]
    said = [(job.id, studio.supervisor.said(job.id)) for job in running]
    versions = {
        "jobs": [*map(_standing, jobs)],
        "training": said,
        "log": said,
        "publications": [_standing(job) for job in jobs if job.kind == "publication"],
        "server": studio.served(owner),
        "rows": [*map(_standing, looks)],
        "calibration": [*map(_standing, looks)],
    }
    return {
        "versions": {name: _version(what) for name, what in versions.items() if what},
        "running": {job.id: [row(job), standing(job), going(job)] for job in running},
    }


def _standing(job: Job) -> tuple[object, ...]:
    return job.id, job.state, job.step, job.attempt, job.finished


def _version(what: object) -> str:
    return blake2b(json.dumps(what, default=str).encode(), digest_size=6).hexdigest()


def listen(page: gr.Blocks) -> None:
    """Make an open page ask for changes; inside the open Blocks."""
    page.load(None, None, None, js=_LISTEN % json.dumps(SEEN), api_name="listen", **QUIET)


def hear(what: str, handler: Handler, inputs: Sequence[Block], outputs: Sequence[Block]) -> None:
    """Update a part of the page when it has changed; inside the open Blocks.

    Args:
        what: A key of SEEN.
        handler: Shows it.
        inputs: Of the handler.
        outputs: Of the handler.
    """
    told = gr.Button(visible="hidden", elem_id=f"hear-{what}").click(
        handler, inputs, outputs, api_name=f"hear_{what}", trigger_mode="multiple", **QUIET
    )
    told.then(None, None, None, js=_HEARD % what, api_name=f"heard_{what}", **QUIET)


_HEARD = "() => document.dispatchEvent(new CustomEvent('heard', { detail: '%s' }))"

_LISTEN = """() => {
  const seen = %s, known = {}, SOON = 500, USUAL = 1000, QUIET = 3000, HIDDEN = 15000, AWHILE = 10000, LEAST = 3000,
    LOST = 10000, STALE = 20000;
  let version = '', app, timer, asking = false, asked = 0, touched = Date.now(), changed = Date.now();
  const ago = (moment) => Date.now() - moment;
  const visible = (selector) => {
    const place = document.querySelector(selector);
    return Boolean(place && (place.offsetParent || place === document.body));
  };
  const write = (node, text) => { if (node && node.data !== text) node.data = text; };
  const progress = (running) => Object.entries(running).forEach(([job, [row, words, bar]]) => {
    const choice = document.querySelector(`#job-list input[value="${job}"]`)?.closest('label');
    write(choice?.querySelector('span')?.firstChild, row);
    document.querySelectorAll(`[data-standing="${job}"]`).forEach((e) => write(e.firstChild, words));
    document.querySelectorAll(`[data-going="${job}"]`).forEach((e) => { if (e.innerHTML !== bar) e.innerHTML = bar; });
  });
  const show = (versions) => Object.keys(seen).forEach((what) => {
    const { version = '', at = 0, heard = true } = known[what] ?? {}, now = versions[what] ?? '';
    const button = document.getElementById(`hear-${what}`);  // there is none before the page is drawn
    const lost = !heard && ago(at) > LOST;  // Gradio drops an event whose stream ends as it is sent
    if ((now === version && !lost) || !button || !visible(seen[what])) return;
    if (what === 'training' && ago(at) < LEAST) return;
    known[what] = { version: now, at: Date.now(), heard: false };
    button.click();
  });
  let told = { versions: {}, running: {} };
  const ask = async () => {
    asking = true; asked = Date.now();
    try {
      const answer = await fetch(`/changes?since=${version}`, { signal: AbortSignal.timeout(STALE) });
      if (answer.status === 200) {
        told = await answer.json();
        if (app && app !== told.app) return location.reload();
        app = told.app; version = told.version; changed = Date.now();
      }
      if (answer.ok) { progress(told.running); show(told.versions); }
    } catch { /* The app is away: it is asked again. */ }
    asking = false;
    wait(document.hidden ? HIDDEN : ago(touched) < AWHILE ? SOON : ago(changed) < AWHILE ? USUAL : QUIET);
  };
  const wait = (rest) => { clearTimeout(timer); timer = setTimeout(ask, rest); };
  const wake = () => { touched = Date.now(); if (!asking) wait(Math.max(100, SOON - ago(asked))); };
  ['pointerdown', 'keydown', 'change', 'drop'].forEach((name) => document.addEventListener(name, wake, true));
  document.addEventListener('heard', ({ detail }) => { known[detail].heard = true; });
  document.addEventListener('visibilitychange', () => document.hidden || wake());
  ask();
}"""
"""Asks while the page is open: soon after an action, seldom when nothing happens or the page is hidden.

An update that does not come within LOST is asked for again, and so is a reply that does not come within STALE.
"""
