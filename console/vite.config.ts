// Builds the console into the API's static files. The output has no time, path or host in it, so the same source gives
// the same bytes and the committed build can be compared with a new one.
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const platform = process.env.PLATFORM_URL ?? "http://127.0.0.1:8000";
const forwarded = { target: platform, changeOrigin: true, configure: asOwnOrigin };

function asOwnOrigin(proxy: { on(event: "proxyReq", does: (request: Headers) => void): void }): void {
  // The API takes a session's cookie from its own origin only, and the browser names that of the development server.
  proxy.on("proxyReq", (request) => request.getHeader("origin") && request.setHeader("origin", platform));
}

interface Headers {
  getHeader(name: string): unknown;
  setHeader(name: string, value: string): void;
}

export default defineConfig({
  base: "./",
  plugins: [react()],
  build: {
    outDir: "../app/static/console",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    sourcemap: false,
    target: "es2022",
  },
  server: {
    proxy: { "/agent": forwarded, "/api": forwarded, "/health": forwarded, "/console/session": forwarded },
  },
  test: { include: ["src/**/*.test.ts", "src/**/*.test.tsx"] },
} as never);
