// An application's code against the written types; tests/postgres/test_typescript.py compiles it, nobody runs it.
import { createClient } from "@supabase/supabase-js"
import type { Database, Enums, Json, Tables, TablesInsert, TablesUpdate } from "database"

const client = createClient<Database>("http://localhost:54321", "anon-key")

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function holds<_ extends true>(): void {}

export async function leads(): Promise<void> {
  // What has a default may be left out, and so may what may be null.
  await client.schema("marketing").from("leads").insert({ email: "user@company.com", source: "website-form" })
  await client.schema("marketing").from("leads").update({ status: "qualified", score: 80, notes: null }).eq("id", "x")

  // One lead has many interactions, and an interaction has one lead.
  const { data: found } = await client
    .schema("marketing").from("leads").select("email, score, lead_interactions(subject, outcome)").single()
  if (found) {
    holds<Equal<typeof found.email, string>>()
    holds<Equal<typeof found.score, number>>()
    const [first] = found.lead_interactions
    holds<Equal<typeof first.subject, string | null>>()
    holds<Equal<typeof first.outcome, "positive" | "neutral" | "negative" | "no_response" | null>>()
  }
  const { data: interactions } = await client
    .schema("marketing").from("lead_interactions").select("interaction_type, leads(email)")
  for (const one of interactions ?? []) holds<Equal<typeof one.leads.email, string>>()
}

export async function events(): Promise<void> {
  const properties: Json = { page: "/demo", tags: ["a", 1, null] }
  await client
    .schema("analytics").from("events")
    .insert({ type: "user_action", name: "demo_request", session_id: "session_123", properties })
  const { data: made } = await client.schema("analytics").rpc("ensure_events_partition", { day: "2026-01-02" })
  holds<Equal<typeof made, boolean | null>>()
}

// The shortcuts.
holds<Equal<Tables<{ schema: "marketing" }, "leads">["phone_number"], string | null>>()
holds<Equal<Tables<"audit_logs">["changed_columns"], string[] | null>>()
holds<Equal<Enums<{ schema: "onboarding" }, "session_status">, "not_started" | "in_progress" | "completed" | "abandoned">>()
const template: TablesInsert<{ schema: "whatsapp" }, "templates"> = {
  account_id: "x", template_name: "welcome", category: "utility", body_text: "Hello {{1}}",
}
const change: TablesUpdate<{ schema: "whatsapp" }, "templates"> = { status: "approved" }
export { template, change }

export async function assigned(): Promise<void> {
  await client.rpc("auto_assign_experiments", { user_id: "x", session_id: "session_123", country: "US" })
}
