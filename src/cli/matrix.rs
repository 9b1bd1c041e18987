//! `meshctl matrix`.

use anstyle::Style;
use clap::{Args, ValueEnum};
use unicode_width::UnicodeWidthStr;

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, HEADING, STRONG, WORRYING, paint, style_of_state};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{Matrix, MatrixRow, PathKind, PeerState, RowMissing, SiteMatrix, SitePair};

/// What the lines and columns of a matrix stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Nodes.
    Node,
    /// Sites: the nodes with one tag `site-NAME` together.
    Site,
}

/// `meshctl matrix`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl matrix\n  meshctl matrix --by site           nodes with the tag site-NAME together\n  \
                        meshctl matrix --delta             against each link's own median of seven days\n  \
                        meshctl matrix --loss\n  meshctl matrix --csv > matrix.csv\n\n\
                        A line is what one node says of its links to the others; the daemon asks each node when this command\n\
                        runs. * stands for outside the baseline (0.5 ms and 5 %), ! for two ends that disagree (20 %, or state).\n\
                        Unless told otherwise, nodes are shown where they fit the terminal, else sites."
)]
pub struct MatrixArgs {
    /// What the lines and columns stand for.
    #[arg(long, value_name = "WHAT")]
    pub by: Option<By>,
    /// The same as --by node.
    #[arg(long, conflicts_with = "by")]
    pub nodes: bool,
    /// Shows loss instead of round trips.
    #[arg(long)]
    pub loss: bool,
    /// Shows by how much round trips differ from their baselines.
    #[arg(long, conflicts_with = "loss")]
    pub delta: bool,
    /// Prints one line of comma-separated values for each link.
    #[arg(long)]
    pub csv: bool,
}

/// What a cell shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Rtt,
    Loss,
    Delta,
}

/// Terminal columns of a usual cell with its blanks, `12.6*!`, and of the narrowest, `-`.
const CELL_WIDTH: usize = 9;
const NARROWEST_CELL: usize = 3;
/// The name of the nodes that have no tag for a site.
const NO_SITE: &str = "no site";

/// Shows the latency between all nodes, or all sites.
pub async fn run(context: &Context, args: &MatrixArgs) -> Result<(), Failure> {
    let output = context.output;
    let figure = match (args.loss, args.delta) {
        (true, _) => Figure::Loss,
        (_, true) => Figure::Delta,
        _ => Figure::Rtt,
    };
    let by = if args.nodes { Some(By::Node) } else { args.by };
    let client = context.client()?;
    // The rows are pulled once for both questions.
    let sites = if by == Some(By::Node) { None } else { Some(client.site_matrix().await?) };
    let whole = output.json || args.csv;
    let by_site = sites.filter(|sites| by == Some(By::Site) || prefers_sites(sites, whole, output.width()));
    match by_site {
        Some(sites) if output.json => output.json(&sites),
        Some(sites) if args.csv => output.data(&site_csv(&sites)),
        Some(sites) => output.data(&render_sites(&sites, figure, output.width())),
        None => {
            let matrix = client.matrix().await?;
            match (output.json, args.csv) {
                (true, _) => output.json(&matrix),
                (_, true) => output.data(&csv(&matrix)),
                _ => output.data(&render(&matrix, figure, output.width())),
            }
        }
    }
}

/// Whether sites are shown to somebody who has not said what he wants: where the nodes would not fit.
fn prefers_sites(sites: &SiteMatrix, whole: bool, width: usize) -> bool {
    let nodes = sites.nodes as usize;
    nodes > Matrix::NODE_LIMIT || (!whole && sites.sites.len() > 1 && (nodes + 3).saturating_mul(CELL_WIDTH) > width)
}

/// Renders the matrix by node for a terminal of so many columns: with names above the columns where there is room for all
/// of them, else with the numbers of the lines, as many as fit.
fn render(matrix: &Matrix, figure: Figure, width: usize) -> String {
    let count = matrix.nodes.len();
    let all: Vec<usize> = (0..count).collect();
    let (mut shown, mut table) = (count, table(matrix, figure, &all, true));
    if table.width() > width {
        // Most of them will not fit: begin with as many as might.
        shown = count.min(width / NARROWEST_CELL);
        table = self::table(matrix, figure, &most_telling(matrix, shown), false);
        while table.width() > width && shown > 1 {
            shown -= 1;
            table = self::table(matrix, figure, &most_telling(matrix, shown), false);
        }
    }
    let mut out = table.render(HEADING);
    let fresh = matrix.rows.iter().filter(|row| row.missing.is_none()).count();
    let oldest = matrix.rows.iter().filter_map(|row| row.age_seconds).fold(0.0, f64::max);
    out.push_str(&format!("\n{}", legend(figure)));
    out.push_str(&format!("rows {fresh}/{count} fresh, oldest {}\n", quantity::age(oldest as u64)));
    if shown < count {
        out.push_str(&format!(
            "columns {shown}/{count}, those with most to tell; all with --by site, --csv or --json\n"
        ));
    }
    out
}

fn table(matrix: &Matrix, figure: Figure, shown: &[usize], named: bool) -> Table {
    let label = |at: usize| if named { matrix.nodes[at].name.clone() } else { (at + 1).to_string() };
    let heads: Vec<String> = shown.iter().map(|at| label(*at)).collect();
    let mut columns = vec![(unit(figure), Align::Left)];
    columns.extend(heads.iter().map(|head| (head.as_str(), Align::Right)));
    columns.push(("ROW AGE", Align::Right));
    let mut table = Table::new(&columns);
    for (at, (node, row)) in matrix.nodes.iter().zip(&matrix.rows).enumerate() {
        let name = if named { node.name.clone() } else { format!("{} {}", at + 1, node.name) };
        let mut line = vec![Cell::styled(name, STRONG)];
        line.extend(shown.iter().map(|column| if *column == at { "".into() } else { cell(row, *column, figure) }));
        line.push(age(row));
        table.row(line);
    }
    table
}

/// The places of the columns to show where there is room for so many: those with most trouble in them, in their order.
fn most_telling(matrix: &Matrix, room: usize) -> Vec<usize> {
    let count = matrix.nodes.len();
    let trouble = |column: usize| {
        let rows = matrix.rows.iter();
        rows.map(|row| {
            let is_in = |places: &[u32]| usize::from(places.iter().any(|place| *place as usize == column));
            let state = row.state.get(column).copied().flatten().map_or(0, PeerState::severity);
            usize::from(state) + is_in(&row.outside) + is_in(&row.disagrees)
        })
        .sum::<usize>()
    };
    let mut columns: Vec<usize> = (0..count).collect();
    columns.sort_by_key(|column| std::cmp::Reverse(trouble(*column)));
    columns.truncate(room);
    columns.sort_unstable();
    columns
}

/// One link as one node sees it.
fn cell(row: &MatrixRow, column: usize, figure: Figure) -> Cell {
    let state = row.state.get(column).copied().flatten();
    let at = |list: &[Option<f64>]| list.get(column).copied().flatten();
    let holds = |places: &[u32]| places.iter().any(|place| *place as usize == column);
    let (outside, disagrees) = (holds(&row.outside), holds(&row.disagrees));
    let marks = format!("{}{}", if outside { "*" } else { "" }, if disagrees { "!" } else { "" });
    let answering = state.is_none_or(|state| matches!(state.name(), "up" | "degraded" | "suspect"));
    let text = match figure {
        Figure::Rtt if answering => at(&row.rtt_seconds).map(milliseconds),
        Figure::Loss => at(&row.loss_ratio).map(percent),
        Figure::Delta if answering => {
            let difference = at(&row.rtt_seconds).zip(at(&row.baseline_seconds)).map(|(rtt, usual)| rtt - usual);
            difference.map(|difference| format!("{:+.2}", difference * 1e3))
        }
        _ => None,
    };
    let name = state.filter(|state| *state != PeerState::Up).map(|state| state.name().to_owned());
    let text = text.or(name).unwrap_or("-".to_owned());
    let style = match state {
        Some(state) if state != PeerState::Up => style_of_state(state),
        _ if outside => WORRYING.bold(),
        _ if disagrees => WORRYING,
        _ => Style::new(),
    };
    Cell::styled(text + &marks, style)
}

fn age(row: &MatrixRow) -> Cell {
    let age = row.age_seconds.map(|age| quantity::age(age as u64));
    let why = row.missing.map(|missing| match missing {
        RowMissing::NoSession => "no session",
        RowMissing::NoAnswer => "no answer",
        RowMissing::NotAsked => "not asked",
    });
    match (age, why) {
        (Some(age), None) => age.into(),
        (Some(age), Some(_)) => Cell::styled(age, WORRYING),
        (None, why) => Cell::styled(why.unwrap_or("-"), BAD),
    }
}

fn unit(figure: Figure) -> &'static str {
    match figure {
        Figure::Rtt => "p50 ms",
        Figure::Loss => "loss %",
        Figure::Delta => "ms vs 7d",
    }
}

fn legend(figure: Figure) -> &'static str {
    match figure {
        Figure::Rtt | Figure::Delta => "* outside its own baseline of seven days   ! the two ends disagree\n",
        Figure::Loss => ". none lost in five minutes   * slower than usual   ! the two ends disagree\n",
    }
}

/// Milliseconds in three digits.
fn milliseconds(seconds: f64) -> String {
    match seconds * 1e3 {
        ms if ms < 9.995 => format!("{ms:.2}"),
        ms if ms < 99.95 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

fn percent(ratio: f64) -> String {
    match ratio * 100.0 {
        0.0 => ".".to_owned(),
        percent if percent < 9.95 => format!("{percent:.2}"),
        percent => format!("{percent:.0}"),
    }
}

/// Renders the matrix by site for a terminal of so many columns.
fn render_sites(matrix: &SiteMatrix, figure: Figure, width: usize) -> String {
    let names: Vec<&str> = matrix.sites.iter().map(|site| site.name.as_deref().unwrap_or(NO_SITE)).collect();
    let longest = names.iter().map(|name| name.width()).max().unwrap_or(0);
    let room = width.saturating_sub(longest.max(8) + 9) / (longest.max(CELL_WIDTH - 2) + 2);
    let shown = names.len().min(room.max(1));
    let mut columns = vec![(unit(figure), Align::Left), ("NODES", Align::Right)];
    columns.extend(names.iter().take(shown).map(|name| (*name, Align::Right)));
    let mut table = Table::new(&columns);
    for ((site, name), line) in matrix.sites.iter().zip(&names).zip(&matrix.pairs) {
        let mut cells = vec![Cell::styled(*name, STRONG), site.nodes.to_string().into()];
        cells.extend(line.iter().take(shown).map(|pair| site_cell(pair, figure)));
        table.row(cells);
    }
    let mut out = table.render(HEADING);
    let [outside, disagreeing, troubled] =
        [|pair: &SitePair| pair.outside, |pair: &SitePair| pair.disagreeing, |pair: &SitePair| pair.troubled]
            .map(|of| matrix.pairs.iter().flatten().map(of).sum::<u32>());
    let links: u32 = matrix.pairs.iter().flatten().map(|pair| pair.links).sum();
    let named = |(mark, count, what, style): (&str, u32, &str, Style)| {
        format!("{mark} {}", paint(if count > 0 { style } else { Style::new() }, &format!("{count} {what}")))
    };
    let marks = [
        ("x", troubled, "in trouble", BAD),
        ("*", outside, "outside their baseline", WORRYING),
        ("!", disagreeing, "seen differently by their ends", WORRYING),
    ];
    let marks = marks.map(named).join("   ");
    out.push_str(&format!("\n{}, each seen from both ends:\n{marks}", quantity::count(links.into(), "link")));
    let oldest = matrix.oldest_seconds.map_or("-".to_owned(), |age| quantity::age(age as u64));
    let fresh = matrix.nodes.saturating_sub(matrix.missing);
    out.push_str(&format!(
        "\nrows {fresh}/{} fresh, oldest {oldest}; link by link: meshctl matrix --nodes\n",
        matrix.nodes
    ));
    if shown < names.len() {
        out.push_str(&format!("columns {shown}/{}; all with --csv, --json or on a wider terminal\n", names.len()));
    }
    out
}

fn site_cell(pair: &SitePair, figure: Figure) -> Cell {
    let text = match figure {
        Figure::Rtt => pair.rtt_p50_seconds.map(milliseconds),
        Figure::Loss => pair.loss_max_ratio.map(percent),
        Figure::Delta => {
            let both = pair.rtt_p50_seconds.zip(pair.baseline_seconds);
            both.map(|(rtt, usual)| format!("{:+.2}", (rtt - usual) * 1e3))
        }
    };
    let mark = |count: u32, mark: &str| if count > 0 { mark.to_owned() } else { String::new() };
    let marks = mark(pair.troubled, "x") + &mark(pair.outside, "*") + &mark(pair.disagreeing, "!");
    let style = match pair {
        pair if pair.troubled > 0 => BAD,
        pair if pair.outside > 0 => WORRYING.bold(),
        pair if pair.disagreeing > 0 => WORRYING,
        _ => Style::new(),
    };
    Cell::styled(text.unwrap_or("-".to_owned()) + &marks, style)
}

fn field(value: Option<impl ToString>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// The matrix as comma-separated values, a line for each link that a node says anything of. Names have no commas.
fn csv(matrix: &Matrix) -> String {
    let mut out = "from,to,from_site,to_site,state,path,rtt_p50_seconds,baseline_seconds,loss_ratio,jitter_seconds,\
                   measured_seconds,row_age_seconds,outside,disagrees\n"
        .to_owned();
    for (from, row) in matrix.nodes.iter().zip(&matrix.rows) {
        for (at, to) in matrix.nodes.iter().enumerate() {
            let Some(state) = row.state.get(at).copied().flatten() else { continue };
            let time = |list: &[Option<f64>]| field(list.get(at).copied().flatten());
            let path = row.path.get(at).copied().flatten().map(|path| match path {
                PathKind::Direct => "direct",
                PathKind::Relay => "relay",
                PathKind::Tcp => "tcp",
            });
            let holds = |places: &[u32]| places.iter().any(|place| *place as usize == at).to_string();
            let fields = [
                from.name.clone(),
                to.name.clone(),
                field(from.site.as_ref()),
                field(to.site.as_ref()),
                state.name().to_owned(),
                field(path),
                time(&row.rtt_seconds),
                time(&row.baseline_seconds),
                time(&row.loss_ratio),
                time(&row.jitter_seconds),
                field(row.measured_seconds.get(at).copied().flatten()),
                field(row.age_seconds),
                holds(&row.outside),
                holds(&row.disagrees),
            ];
            out.push_str(&fields.join(","));
            out.push('\n');
        }
    }
    out
}

/// The matrix of sites as comma-separated values, a line for each pair of which a link is known.
fn site_csv(matrix: &SiteMatrix) -> String {
    let mut out =
        "from_site,to_site,links,troubled,outside,disagreeing,rtt_p50_seconds,rtt_max_seconds,baseline_seconds,\
                   loss_max_ratio\n"
            .to_owned();
    for (from, line) in matrix.sites.iter().zip(&matrix.pairs) {
        for (to, pair) in matrix.sites.iter().zip(line).filter(|(_, pair)| pair.links > 0) {
            let times = [pair.rtt_p50_seconds, pair.rtt_max_seconds, pair.baseline_seconds, pair.loss_max_ratio];
            let counts = [pair.links, pair.troubled, pair.outside, pair.disagreeing].map(|count| count.to_string());
            let sites = [field(from.name.as_ref()), field(to.name.as_ref())];
            let fields = sites.into_iter().chain(counts).chain(times.map(field));
            out.push_str(&fields.collect::<Vec<_>>().join(","));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MatrixNode;
    use crate::api::fake::{matrix, site_matrix};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn four_nodes() {
        insta::assert_snapshot!(plain(&render(&matrix(), Figure::Rtt, 80)), @r#"
            p50 ms   web1   web2    db1     old1  ROW AGE
            web1            0.21  12.6*     down       2s
            web2     0.21         10.3!     down       2s
            db1     12.6*  14.4!         suspect       2s
            old1        -      -      -             5m12s

            * outside its own baseline of seven days   ! the two ends disagree
            rows 3/4 fresh, oldest 5m12s
        "#);
    }

    #[test]
    fn four_nodes_against_their_baselines_and_by_loss() {
        let shown = [Figure::Delta, Figure::Loss].map(|figure| plain(&render(&matrix(), figure, 80)));
        insta::assert_snapshot!(shown.join("\n"), @r#"
            ms vs 7d    web1    web2     db1     old1  ROW AGE
            web1               +0.00  +2.31*     down       2s
            web2       +0.00          +0.00!     down       2s
            db1       +2.31*  +0.00!          suspect       2s
            old1           -       -       -             5m12s

            * outside its own baseline of seven days   ! the two ends disagree
            rows 3/4 fresh, oldest 5m12s

            loss %  web1  web2  db1  old1  ROW AGE
            web1             .   .*   100       2s
            web2       .         .!   100       2s
            db1       .*    .!        100       2s
            old1       -     -    -          5m12s

            . none lost in five minutes   * slower than usual   ! the two ends disagree
            rows 3/4 fresh, oldest 5m12s
        "#);
    }

    #[test]
    fn sites() {
        insta::assert_snapshot!(plain(&render_sites(&site_matrix(), Figure::Rtt, 80)), @r#"
            p50 ms   NODES     gra     par  no site
            gra          2    0.21  12.6*!       -x
            par          1  14.4*!       -       -x
            no site      1       -       -        -

            9 links, each seen from both ends:
            x 3 in trouble   * 2 outside their baseline   ! 2 seen differently by their ends
            rows 3/4 fresh, oldest 2s; link by link: meshctl matrix --nodes
        "#);
    }

    #[test]
    fn comma_separated() {
        insta::assert_snapshot!(csv(&matrix()), @r#"
            from,to,from_site,to_site,state,path,rtt_p50_seconds,baseline_seconds,loss_ratio,jitter_seconds,measured_seconds,row_age_seconds,outside,disagrees
            web1,web2,gra,gra,up,direct,0.00021,0.00021,0,0.000094,1,2,false,false
            web1,db1,gra,par,up,direct,0.01261,0.0103,0,0.000094,1,2,true,false
            web1,old1,gra,,down,,,,1,,,2,false,false
            web2,web1,gra,gra,up,direct,0.00021,0.00021,0,0.000094,1,2,false,false
            web2,db1,gra,par,up,direct,0.01028,0.01028,0,0.000094,1,2,false,true
            web2,old1,gra,,down,,,,1,,,2,false,false
            db1,web1,par,gra,up,direct,0.01261,0.0103,0,0.000094,1,2,true,false
            db1,web2,par,gra,up,direct,0.0144,0.0144,0,0.000094,1,2,false,true
            db1,old1,par,,suspect,,,,1,,,2,false,false
        "#);
        insta::assert_snapshot!(site_csv(&site_matrix()), @r#"
            from_site,to_site,links,troubled,outside,disagreeing,rtt_p50_seconds,rtt_max_seconds,baseline_seconds,loss_max_ratio
            gra,gra,2,0,0,0,0.00021,0.00021,0.00021,0
            gra,par,2,0,1,1,0.01261,0.01261,0.01261,0
            gra,,2,2,0,0,,,,
            par,gra,2,0,1,1,0.0144,0.0144,0.0144,0
            par,,1,1,0,0,,,,
        "#);
    }

    /// A mesh of so many nodes, all links 10 ms but one, which is down.
    fn wide(count: usize) -> Matrix {
        let few = matrix();
        let node = |at: usize| MatrixNode { name: format!("web-gra-{at:02}"), ..few.nodes[0].clone() };
        let row = |at: usize| {
            let rtt = (0..count).map(|other| (other != at).then_some(0.01)).collect::<Vec<_>>();
            let mut state: Vec<_> = rtt.iter().map(|rtt| rtt.map(|_| PeerState::Up)).collect();
            if at == 0 {
                state[count - 2] = Some(PeerState::Down);
            }
            MatrixRow { rtt_seconds: rtt, state, age_seconds: Some(1.0), ..MatrixRow::default() }
        };
        Matrix { nodes: (0..count).map(node).collect(), rows: (0..count).map(row).collect(), ..few }
    }

    #[test]
    fn a_wide_mesh_shows_the_columns_with_most_to_tell() {
        for (count, width) in [(40, 80), (40, 160), (200, 80), (12, 80)] {
            let text = plain(&render(&wide(count), Figure::Rtt, width));
            assert!(text.lines().all(|line| line.width() <= width), "{text}");
            let down = format!(" {} ", count - 1);
            assert!(text.lines().next().unwrap().contains(&down), "the column of the broken link is there:\n{text}");
            assert!(text.contains(&format!("/{count}, those with most to tell")), "{text}");
        }
        let all = plain(&render(&wide(12), Figure::Rtt, 200));
        assert!(!all.contains("most to tell") && all.lines().next().unwrap().contains("web-gra-11"), "{all}");
    }

    #[test]
    fn sites_are_preferred_where_nodes_do_not_fit() {
        let mut sites = site_matrix();
        let prefers = |sites: &SiteMatrix, whole, width| prefers_sites(sites, whole, width);
        assert!(!prefers(&sites, false, 80), "four nodes fit");
        sites.nodes = 20;
        assert!(prefers(&sites, false, 80) && !prefers(&sites, false, 250) && !prefers(&sites, true, 80));
        sites.sites.truncate(1);
        assert!(!prefers(&sites, false, 80), "one site says nothing");
        sites.nodes = 1_000;
        assert!(prefers(&sites, true, usize::MAX), "a million links are no answer");
    }
}
