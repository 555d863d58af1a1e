// A program with OpenFeature's Node SDK and its OFREP provider in it. Told what to do by a JSON object on stdin, it prints
// on stdout what each flag was found to be, for the server SDK and for the web SDK, which asks for all of them at once.

import { readFileSync } from 'node:fs'
import { OpenFeature } from '@openfeature/server-sdk'
import { OFREPProvider } from '@openfeature/ofrep-provider'
import { OpenFeature as Web } from '@openfeature/web-sdk'
import { OFREPWebProvider } from '@openfeature/ofrep-web-provider'

const told = JSON.parse(readFileSync(0, 'utf8'))
const headers = told.key ? [['Authorization', `Bearer ${told.key}`]] : []

const of = (type) => `get${type}Details`

async function onServer() {
  await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl: told.host, headers }))
  const client = OpenFeature.getClient()
  const found = {}
  for (const { key, type, otherwise, context } of told.flags) {
    found[key] = await client[of(type)](key, otherwise, context)
  }
  return found
}

async function onWeb() {
  const statuses = []
  const fetchImplementation = async (...request) => {
    const response = await fetch(...request)
    statuses.push(response.status)
    return response
  }
  // A clock of its own would keep the program alive.
  const provider = new OFREPWebProvider({ baseUrl: told.host, headers, pollInterval: -1, fetchImplementation })
  await Web.setContext(told.context)
  await Web.setProviderAndWait(provider)
  const client = Web.getClient()
  const found = {}
  for (const { key, type, otherwise } of told.flags) {
    found[key] = client[of(type)](key, otherwise)
  }
  // The same context again is what the provider has.
  await Web.setContext(told.context)
  await Web.setContext({ ...told.context, targetingKey: 'another' })
  return { found, statuses }
}

console.log(JSON.stringify({ server: await onServer(), web: await onWeb() }))
await OpenFeature.close()
await Web.close()
