import { count, moment } from "../../design/format";
import { useSettings } from "../../design/settings";
import type { OverviewData } from "./Overview";

const HEIGHT = 96;
const STEP = 10;

/** Runs that ended, a bar a minute; those that failed are the lower part, and are named in its title. */
export function Throughput({ minutes }: { minutes: OverviewData["throughput"] }) {
  const { zone } = useSettings();
  const most = Math.max(1, ...minutes.map(({ ended }) => ended));
  const ended = minutes.reduce((sum, minute) => sum + minute.ended, 0);
  const failed = minutes.reduce((sum, minute) => sum + minute.failed, 0);
  const high = (number: number) => (number ? Math.max((number / most) * HEIGHT, 2) : 0);
  const time = (at: string | undefined) => (at ? moment(new Date(at), zone).slice(11, 16) : "");
  return (
    <figure className="body stack-s throughput">
      <svg
        viewBox={`0 0 ${minutes.length * STEP} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`${count(ended)} runs ended in the last hour, ${count(failed)} of them failed; at most ${most} a minute`}
      >
        {minutes.map((minute, place) => (
          <g key={minute.minute}>
            <title>{`${time(minute.minute)}: ${minute.ended} ended, ${minute.failed} failed`}</title>
            <rect className="hit" x={place * STEP} y={0} width={STEP} height={HEIGHT} />
            <rect x={place * STEP + 1} y={HEIGHT - high(minute.ended)} width={STEP - 2} height={high(minute.ended)} />
            <rect
              className="failed"
              x={place * STEP + 1}
              y={HEIGHT - high(minute.failed)}
              width={STEP - 2}
              height={high(minute.failed)}
            />
          </g>
        ))}
      </svg>
      <figcaption className="row muted">
        <span>{time(minutes[0]?.minute)}</span>
        <span className="grow throughput-sum">
          {count(ended)} ended, {count(failed)} failed, at most {count(most)} a minute
        </span>
        <span>{time(minutes.at(-1)?.minute)}</span>
      </figcaption>
    </figure>
  );
}
