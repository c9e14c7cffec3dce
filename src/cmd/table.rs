//! Tables with aligned columns.

use unicode_width::UnicodeWidthStr as _;

const GAP: &str = "  ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Formats rows of cells as lines in which the columns are aligned as `aligns` says. No line has white space at its end.
pub(super) fn lines<const N: usize>(aligns: [Align; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for ((cell, width), align) in row.iter().zip(widths).zip(aligns) {
            let padding = " ".repeat(width - cell.width());
            match align {
                Align::Left => line.extend([cell, padding.as_str()]),
                Align::Right => line.extend([padding.as_str(), cell]),
            }
            line.push_str(GAP);
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_their_width_on_a_terminal() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [
            row(["NAME", "ID", "SINCE"]),
            row(["山田", "7", "L=2"]),
            row(["Ada", "1000001", ""]),
        ];
        assert_eq!(
            lines([Align::Left, Align::Right, Align::Left], &rows),
            ["NAME       ID  SINCE", "山田        7  L=2", "Ada   1000001"]
        );
    }
}
