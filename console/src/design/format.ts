// Numbers, amounts and times as text. All of it depends on what is given alone.

/** Seconds as two units at most: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0) return "0 s";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [big, small, bigName, smallName] =
    whole < 3600
      ? [Math.floor(whole / 60), whole % 60, "min", "s"]
      : whole < 86_400
        ? [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), "h", "min"]
        : [Math.floor(whole / 86_400), Math.floor((whole % 86_400) / 3600), "d", "h"];
  return small ? `${big} ${bigName} ${small} ${smallName}` : `${big} ${bigName}`;
}

/** Dollars: cents where they say enough, up to six places where the amount is smaller. Never a zero for what is none. */
export function usd(amount: number): string {
  if (amount === 0) return "$0";
  const sign = amount < 0 ? "−" : "";
  const size = Math.abs(amount);
  if (size < 0.000001) return `${sign}<$0.000001`;
  if (size < 0.01) return `${sign}$${size.toFixed(6).replace(/0+$/, "")}`;
  return `${sign}$${size.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}

/** Bytes by powers of 1024. */
export function bytes(count: number): string {
  if (count < 1024) return `${count} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let size = count / 1024;
  let unit = 0;
  while (size >= 1023.95 && unit < units.length - 1) {
    size /= 1024;
    unit++;
  }
  return `${size < 9.95 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

export function count(number: number): string {
  return number.toLocaleString("en-US");
}

export type Zone = "local" | "utc";

/** How the zone is called where times are shown: "UTC" or like "Europe/Berlin (UTC+1)". */
export function zoneName(zone: Zone, now = new Date()): string {
  if (zone === "utc") return "UTC";
  const minutes = -now.getTimezoneOffset();
  const hours = Math.abs(minutes) / 60;
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return `${name} (UTC${minutes < 0 ? "−" : "+"}${Number.isInteger(hours) ? hours : hours.toFixed(2)})`;
}

/** 2026-12-01 04:05:06, in the zone; `withMs`: and milliseconds. */
export function moment(at: Date, zone: Zone, withMs = false): string {
  const shifted = zone === "utc" ? at : new Date(at.getTime() - at.getTimezoneOffset() * 60_000);
  return shifted
    .toISOString()
    .replace("T", " ")
    .slice(0, withMs ? 23 : 19);
}

/** How long ago, in one unit; what is to come begins with "in". */
export function ago(at: Date, now: Date): string {
  const seconds = (now.getTime() - at.getTime()) / 1000;
  const size = Math.abs(seconds);
  if (size < 5) return "now";
  const text =
    size < 60
      ? `${Math.floor(size)} s`
      : size < 3600
        ? `${Math.floor(size / 60)} min`
        : size < 86_400
          ? `${Math.floor(size / 3600)} h`
          : `${Math.floor(size / 86_400)} d`;
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

/** The first line of a text that says something, without the marks of Markdown at its beginning. */
export function firstLine(text: string): string {
  const line = text.split("\n").find((one) => one.trim() && !one.trim().startsWith("```"));
  return (line ?? text).replace(/^[#>\s*-]+/, "").trim() || "(empty)";
}
