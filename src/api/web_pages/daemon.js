// What the daemon is asked, and its answers in the page's own terms: seconds and milliseconds as numbers, no schema.

import { MeshTable } from "./mesh_table.js";
import { SiteTable } from "./site_table.js";

/** How long an answer may take before the daemon counts as silent. */
const PATIENCE = 15_000;

/** The newest table, and when it was asked for. */
let last = null;

/** The daemon answered, and refused: what it said for people, and its `kind` for this page. */
export class Refusal extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

/** Asks for a JSON answer. Throws a `Refusal`, or whatever the network says where no answer came. */
async function ask(path) {
  const answer = await fetch(path, { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  const message = told.message ? [told.message, told.advice].filter(Boolean).join("; ") : `HTTP ${answer.status}`;
  throw new Refusal(message, told.kind);
}

/** This node and what it thinks of itself. */
export async function status() {
  const told = await ask("v1/status");
  return {
    now: Date.parse(told.now),
    node: told.node,
    mesh: told.mesh,
    version: told.version,
    uptime: told.uptime_seconds,
    problems: told.problems,
  };
}

/** The whole mesh, as each of its nodes sees it; an answer younger than `age` milliseconds will do. */
export async function matrix(age = 0) {
  if (last && Date.now() - last.asked < age) return last.table;
  const asked = Date.now();
  const told = await ask("v1/matrix").catch((error) => {
    // More nodes than it tells one by one: it told so at once, and sites will do.
    if (error instanceof Refusal && error.kind === "bad_request") return null;
    throw error;
  });
  last = { asked, table: told ? tableOf(told) : new SiteTable(await ask("v1/matrix/sites")) };
  return last.table;
}

function tableOf(told) {
  const nodes = told.nodes.map((node, number) => ({
    name: node.name,
    site: node.site ?? "",
    age: told.rows[number].age_seconds ?? null,
    missing: told.rows[number].missing ?? null,
  }));
  const table = new MeshTable(nodes);
  told.rows.forEach((row, from) => {
    for (let to = 0; to < nodes.length; to += 1) {
      if (row.state[to] == null) continue;
      table.enter(from, to, {
        state: row.state[to],
        rtt: row.rtt_seconds[to],
        usual: row.baseline_seconds[to],
        loss: row.loss_ratio[to],
        jitter: row.jitter_seconds[to],
        path: row.path[to],
      });
    }
  });
  return table.finish();
}

/** One link's history between two times in milliseconds, by points of `step` seconds each. */
export async function history(peer, since, until, step) {
  const told = await ask(`v1/history?${query({ peer, since, until, step_seconds: step })}`);
  return {
    peer: told.peer,
    step: told.step_seconds * 1000,
    since: Date.parse(told.since),
    until: Date.parse(told.until),
    usual: told.baseline_seconds ?? NaN,
    total: point(told.total),
    points: told.points.map(point),
  };
}

/** What happened on one link between two times in milliseconds, oldest first. */
export async function events(peer, since, until) {
  const told = await ask(`v1/events?${query({ peer, since, until, limit: 500 })}`);
  const items = told.events.map((event) => ({ ...event, at: Date.parse(event.at) }));
  return { items, truncated: told.truncated };
}

function point(told) {
  return {
    at: Date.parse(told.start),
    gap: told.gap,
    partial: told.partial,
    probes: told.probes_sent,
    path: spread(told.path),
    tunnel: spread(told.tunnel),
    host: spread(told.host_delay),
    loss: told.loss,
    forward: told.loss_forward,
    reverse: told.loss_reverse,
    dataForward: told.data_loss_forward,
    dataReverse: told.data_loss_reverse,
    jitter: told.jitter_seconds ?? NaN,
    states: told.states,
  };
}

function spread(told) {
  return (
    told && {
      min: told.min_seconds,
      p5: told.p5_seconds,
      p25: told.p25_seconds,
      p50: told.p50_seconds,
      p75: told.p75_seconds,
      p95: told.p95_seconds,
      p99: told.p99_seconds,
      max: told.max_seconds,
    }
  );
}

/** Times become RFC 3339 in UTC. */
function query({ since, until, ...rest }) {
  const stamp = (milliseconds) => `${new Date(milliseconds).toISOString().slice(0, 19)}Z`;
  return new URLSearchParams({ since: stamp(since), until: stamp(until), ...rest });
}
