// A mesh too large to be told node by node: its sites, and what their links come to. It answers the heat-map's questions
// as a `MeshTable` does, with sites in the place of nodes.

import { MeshTable } from "./mesh_table.js";
import { STATES } from "./state.js";

/** Sites and the links between them, one moment. */
export class SiteTable extends MeshTable {
  /** Makes a table of what the daemon tells: `sites` and, for each, `pairs` in their order. */
  constructor(told) {
    super(told.sites.map((site) => ({ name: site.name ?? "no site", site: "", age: told.oldest_seconds ?? null, size: site.nodes })));
    this.bySite = { nodes: told.nodes, rows: told.rows, oldest: told.oldest_seconds ?? null };
    this.links = told.pairs;
    told.pairs.forEach((line, from) =>
      line.forEach((pair, to) => {
        this.rtt[from * this.nodes.length + to] = pair.rtt_p50_seconds ?? NaN;
      }),
    );
    this.finish();
  }

  lines() {
    return this.nodes.map((node, number) => ({ site: node.name, group: "", name: `${node.name} (${node.size})`, nodes: [number] }));
  }

  /** What a site says of its links to another, or of those inside it. */
  cell(row, column) {
    const pair = this.links[row.nodes[0]][column.nodes[0]];
    if (!(pair.links > 0)) return { state: 0, rtt: NaN, usual: NaN, links: 0 };
    return {
      state: STATES.indexOf(pair.troubled > 0 ? "degraded" : "up"),
      rtt: pair.rtt_p50_seconds ?? NaN,
      usual: pair.baseline_seconds ?? NaN,
      loss: pair.loss_max_ratio ?? NaN,
      disagree: pair.disagreeing > 0,
      links: pair.links,
      bad: pair.troubled,
      outside: pair.outside,
    };
  }

  /** Sums over all links. */
  sum(what) {
    return this.links.flat().reduce((sum, pair) => sum + pair[what], 0);
  }

  illNodes() {
    return [];
  }

  worst() {
    return [];
  }
}
