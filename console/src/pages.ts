// Every page of the console, once: its address, its place in the menu, and the code that is loaded when it is opened. A
// page is one folder below `pages/`; to add one, add its line here.
import type { ComponentType, LazyExoticComponent } from "react";
import type { IconName } from "./design/Icon";
import { lazyPage } from "./lazyPage";

export interface Page {
  /** As wouter reads it; what is in the address stands in `params`. */
  path: string;
  title: string;
  /** Where there is none, the page is reached from others and does not stand in the menu. */
  menu?: { icon: IconName; group: "work" | "platform" | "account"; shortcut?: string };
  component: LazyExoticComponent<ComponentType>;
}

export const PAGES: readonly Page[] = [
  {
    path: "/",
    title: "Overview",
    menu: { icon: "gauge", group: "work", shortcut: "g o" },
    component: lazyPage(() => import("./pages/overview/Overview")),
  },
  {
    path: "/runs",
    title: "Runs",
    menu: { icon: "list", group: "work", shortcut: "g r" },
    component: lazyPage(() => import("./pages/runs/Runs")),
  },
  { path: "/runs/:run/:tab?", title: "Run", component: lazyPage(() => import("./pages/run/Run")) },
  {
    path: "/needs-you",
    title: "Needs you",
    menu: { icon: "hand", group: "work", shortcut: "g n" },
    component: lazyPage(() => import("./pages/needs-you/NeedsYou")),
  },
  {
    path: "/spend",
    title: "Spend",
    menu: { icon: "coin", group: "account", shortcut: "g s" },
    component: lazyPage(() => import("./pages/spend/Spend")),
  },
];
