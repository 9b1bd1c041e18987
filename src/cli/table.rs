//! Borderless aligned columns.

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

/// How a column's cells are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One cell: text that may be styled; its width is that of the text.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Makes a styled cell.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Cell { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), style: Style::new() }
    }
}

/// A table with a heading line.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Starts a table.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect();
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row; cells beyond the columns are not shown, missing ones are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Leaves columns out, in the order they are named here, until a line fits into `room` terminal columns or none of
    /// them is left: a line that breaks makes a table unreadable.
    #[must_use]
    pub fn fitted(mut self, room: usize, expendable: &[&str]) -> Self {
        for name in expendable {
            if self.width() <= room {
                break;
            }
            self = self.without(name);
        }
        self
    }

    /// Leaves one column out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        if let Some(at) = self.columns.iter().position(|(column, _)| column == name) {
            self.columns.remove(at);
            self.rows.iter_mut().filter(|row| at < row.len()).for_each(|row| drop(row.remove(at)));
        }
        self
    }

    /// Returns the width of a line in terminal columns.
    pub fn width(&self) -> usize {
        self.widths().iter().sum::<usize>() + 2 * self.columns.len().saturating_sub(1)
    }

    /// The width of each column.
    fn widths(&self) -> Vec<usize> {
        let width = |(at, (name, _)): (usize, &(String, Align))| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text.width());
            cells.max().unwrap_or(0).max(name.width())
        };
        self.columns.iter().enumerate().map(width).collect()
    }

    /// Renders the table: two blanks between columns, none at the end of a line.
    pub fn render(&self, heading: Style) -> String {
        let headings = self.columns.iter().map(|(name, _)| Cell::styled(name, heading)).collect();
        let rows: Vec<&Vec<Cell>> = std::iter::once(&headings).chain(&self.rows).collect();
        let widths = self.widths();
        let mut out = String::new();
        for row in rows {
            out.push_str(&self.line(row, &widths));
            out.push('\n');
        }
        out
    }

    /// Renders the rows alone, for a table that is continued.
    pub fn render_rows(&self) -> String {
        let widths = self.widths();
        self.rows.iter().map(|row| self.line(row, &widths) + "\n").collect()
    }

    fn line(&self, row: &[Cell], widths: &[usize]) -> String {
        let mut line = String::new();
        let mut pending = 0;
        for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padding = width - cell.text.width().min(*width);
            let right = self.columns[at].1 == Align::Right;
            pending += if right { padding } else { 0 };
            if !cell.text.is_empty() {
                line.extend(std::iter::repeat_n(' ', pending));
                pending = 0;
                line.push_str(&format!("{}{}{}", cell.style.render(), cell.text, cell.style.render_reset()));
            }
            pending += 2 + if right { 0 } else { padding };
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_the_width_and_colour() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("NOTE", Align::Left)]);
        let red = anstyle::AnsiColor::Red.on_default();
        table.row(["a".into(), Cell::styled("1", red), "x".into()]);
        table.row(["zürich".into(), "1000".into(), "".into()]);
        table.row(["東京".into(), "".into(), "y".into()]);
        let text = anstream::adapter::strip_str(&table.render(Style::new())).to_string();
        insta::assert_snapshot!(text, @r#"
            NAME       N  NOTE
            a          1  x
            zürich  1000
            東京          y
        "#);
    }

    #[test]
    fn what_can_be_spared_goes_until_it_fits() {
        let table = || {
            let mut table = Table::new(&[("NAME", Align::Left), ("RTT", Align::Right), ("SENT", Align::Right)]);
            table.row(["web1".into(), "9 ms".into(), "1.00 KiB".into()]);
            table.row(["web2".into()]);
            table
        };
        let lines = |room| {
            let text = table().fitted(room, &["SENT", "none such", "RTT"]).render(Style::new());
            anstream::adapter::strip_str(&text).to_string().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(20), ["NAME   RTT      SENT", "web1  9 ms  1.00 KiB", "web2"]);
        assert_eq!(lines(19), ["NAME   RTT", "web1  9 ms", "web2"]);
        assert_eq!(lines(1), ["NAME", "web1", "web2"]);
    }
}
