// Icons of the console, drawn on 16 by 16. They always stand beside a word, or the button that has one alone has a label.
const SHAPES = {
  gauge: "M2.5 12a6 6 0 1 1 11 0M8 11l2.5-4",
  list: "M5.5 4h8M5.5 8h8M5.5 12h8M2.5 4h.01M2.5 8h.01M2.5 12h.01",
  hand: "M8 2.5v6M5.5 4v5.5M10.5 4v5M13 6v4a4 4 0 0 1-4 4H8c-2 0-3-1-4.5-4L3 8.5",
  robot: "M3.5 6h9v7h-9zM8 6V3M6 9h.01M10 9h.01M1.5 9v2M14.5 9v2",
  queue: "M2.5 4h11M2.5 8h11M2.5 12h6M11 12h2.5",
  clock: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M8 5v3l2 1.5",
  server: "M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01",
  coin: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M9.8 6.2C9 5.2 6.4 5.3 6.4 6.7S9.7 8 9.7 9.4 7 10.7 6.1 9.7M8 4.5v7",
  gear: "M8 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M8 1.5v2M8 12.5v2M1.5 8h2M12.5 8h2M3.4 3.4l1.4 1.4M11.2 11.2l1.4 1.4M3.4 12.6l1.4-1.4M11.2 4.8l1.4-1.4",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3l3.2 3.2",
  menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
  close: "M4 4l8 8M12 4l-8 8",
  check: "M3 8.5l3.5 3.5L13 4.5",
  cross: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M6 6l4 4M10 6l-4 4",
  circle: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11",
  dots: "M4 8h.01M8 8h.01M12 8h.01",
  play: "M5 3.5l7 4.5-7 4.5z",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  stop: "M4 4h8v8H4z",
  slash: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M4.2 4.2l7.6 7.6",
  retry: "M13 8a5 5 0 1 1-1.5-3.5M13 2.5V5h-2.5",
  fork: "M5 3v10M5 8c6 0 6-1 6-5M5 13h.01",
  download: "M8 2.5v7.5M5 7l3 3 3-3M3 13.5h10",
  copy: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3",
  file: "M4 2.5h5l3 3v8H4zM9 2.5v3h3",
  folder: "M2.5 4h4l1.5 1.5h5.5v7h-11z",
  chevron: "M6 4l4 4-4 4",
  down: "M4 6l4 4 4-4",
  warning: "M8 2.5l6 11H2zM8 6.5v3M8 11.5h.01",
  question: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M6.4 6.4c.2-2 3.3-1.8 3.3 0 0 1.3-1.7 1.3-1.7 2.6M8 11h.01",
  out: "M6.5 3h-4v10h4M6 8h7.5M11 5.5L13.5 8 11 10.5",
  sun: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6M8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  plus: "M8 3v10M3 8h10",
  link: "M6.5 9.5l3-3M7 4.5l1.5-1.5a3 3 0 0 1 4.5 4.5L11.5 9M9 11.5L7.5 13A3 3 0 0 1 3 8.5L4.5 7",
} as const;

export type IconName = keyof typeof SHAPES;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg className="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      <path d={SHAPES[name]} />
    </svg>
  );
}
