//! Lines over a few named places, drawn as SVG.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Blue and orange differ for everybody.
const COLORS: [RGBColor; 2] = [RGBColor(230, 159, 0), RGBColor(0, 90, 170)];

const SIZE: (u32, u32) = (680, 340);

/// One value on each line for each label.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// What the labels are.
    pub(crate) axis: &'a str,
    /// What the values are.
    pub(crate) unit: &'a str,
    pub(crate) labels: Vec<String>,
    pub(crate) lines: Vec<(&'a str, Vec<f64>)>,
}

impl Plot<'_> {
    /// Writes it into a file, in place of what was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        self.draw(&root)
            .with_context(|| path.display().to_string())?;
        Ok(())
    }

    fn draw(&self, root: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        root.fill(&WHITE)?;
        let values = self.lines.iter().flat_map(|(_, values)| values);
        let most = values.copied().fold(0.0, f64::max);
        let last = i32::try_from(self.labels.len())? - 1;
        let label = |place: &i32| {
            let label = usize::try_from(*place).ok();
            let label = label.and_then(|place| self.labels.get(place));
            label.cloned().unwrap_or_default()
        };
        let mut chart = ChartBuilder::on(root)
            .caption(self.title, ("sans-serif", 16))
            .margin(12)
            .margin_right(36)
            .x_label_area_size(44)
            .y_label_area_size(84)
            .build_cartesian_2d(0..last, 0.0..most * 1.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(self.labels.len())
            .x_desc(self.axis)
            .y_desc(self.unit)
            .x_label_formatter(&label)
            .y_label_formatter(&|value| thousands(*value))
            .draw()?;
        for ((name, values), color) in self.lines.iter().zip(COLORS) {
            let points = || (0..).zip(values.iter().copied());
            let mark = move |(x, y): (i32, i32)| {
                PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2))
            };
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
                .label(*name)
                .legend(mark);
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        if self.lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE)
                .border_style(BLACK)
                .draw()?;
        }
        root.present()?;
        Ok(())
    }
}

/// A number with a mark between each three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_its_lines_labels_and_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let plot = Plot {
            title: "title",
            axis: "axis",
            unit: "unit",
            labels: vec!["small".to_owned(), "large".to_owned()],
            lines: vec![("one", vec![1000.0, 2000.0]), ("other", vec![0.0, 500.0])],
        };
        plot.write(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in [
            "title", "axis", "unit", "small", "large", "one", "other", "2,000",
        ] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 4);
    }

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0.0, 999.0, 1000.0, 1_234_567.0].map(thousands);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
